/*
 * A load generator: many clients that long-poll over keep-alive connections, on one thread and with one epoll.
 *
 * Every client asks for its first cursor, then sends poll after poll, each with what it captured from the answer before.
 * Messages are found in the bodies as {"n":NUMBER,"t":NANOSECONDS of CLOCK_MONOTONIC. The numbers of each client have to be 1, 2,
 * 3, …: what is left out is lost, what comes again is doubled.
 *
 * Options are name=value (see `options`). Commands come in lines on standard input, events go as JSON lines to standard output:
 *
 *     connect    connect all clients; event "parked" when each of them has sent a request that is held
 *     storm      cut all connections and connect again at once; event "parked" as above
 *     await N    event "reached" when every client has message N and has sent its next poll
 *     pace N     with the option `paced`: send N requests a second in all, each from the client that has rested longest; 0: none
 *     start      set all counters to zero
 *     report     event "report" with the counters
 *     stop       send nothing more
 *     quit       end; so does the end of standard input
 */

#define _GNU_SOURCE
#include "answer.h"
#include "histogram.h"
#include "plan.h"

#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define MILLISECOND UINT64_C(1000000)
#define RETRY_DELAY (100 * MILLISECOND)
#define CUT_DELAY (1 * MILLISECOND)
#define MAX_REQUEST (64 << 10)
#define READ_SIZE (4 << 20)
#define STATUSES 600
#define COMMANDS UINT32_MAX    /* the epoll data of standard input */
#define TICKS (UINT32_MAX - 1) /* and of the timer that paces */

enum state { CLOSED, CONNECTING, SENDING, RESTING, ASKING_FIRST, PARKED };
/* Connecting, or without a cursor yet. */
#define ARRIVING(state) ((state) == CONNECTING || (state) == ASKING_FIRST)
/* There is nothing to do for it until something happens. */
#define AT_REST(state) ((state) == PARKED || (state) == RESTING)

struct text {
    char *data;
    size_t size, room;
};

struct client {
    int socket;
    enum state state;
    struct text captured[MAX_CAPTURES];
    struct text partial; /* the beginning of an answer */
    size_t needed;       /* bytes that `partial` has to have before it is worth another look */
    uint64_t last;       /* number of the last message */
    uint64_t asked;      /* when the last request was sent, or paced: when it was due */
    bool in_line;        /* it has a place in `resting` */
};

/* Clients that are due after a delay that is the same for all in the queue, so it is in order. */
struct queue {
    uint64_t delay;
    uint32_t *clients;
    uint64_t *due;
    size_t head, count;
};

static struct {
    unsigned port;
    unsigned first_source; /* 127.0.0.N is the first source address */
    unsigned sources;      /* clients are dealt out to so many */
    unsigned connecting;   /* clients that connect or ask for their first cursor at a time; 0: all */
    unsigned spread;       /* milliseconds over which connections are begun */
    unsigned cut;          /* a longer request is sent in two parts, the first of so many bytes; 0: never */
    unsigned requests;     /* 1: the histogram shows the time from request to answer, not from message to client */
    unsigned paced;        /* 1: clients send nothing but what `pace` has them send */
} options = {.first_source = 1, .sources = 1, .connecting = 128};

static struct {
    uint64_t answers, empty, messages, bytes, requests;
    uint64_t lost, doubled, cut, broken, refused, reconnects;
    uint64_t statuses[STATUSES];
    uint64_t first_answer, last_answer;
    struct histogram latency;
} counts;

static struct plan plan;
static struct client *clients;
static struct queue second_parts = {.delay = CUT_DELAY}, retries = {.delay = RETRY_DELAY};
/* Paced: who waits for its turn, and the time of the next turn. Whoever is not at rest any more when its turn comes is left out. */
static struct {
    uint32_t *clients;
    size_t head, count;
} resting;
static uint64_t turn, interval;
static int poller, ticks;
static char buffer[READ_SIZE];
static bool stopped, telling_parked;
static unsigned parked, arriving, to_connect; /* to_connect: the next client that is to connect */
static uint64_t begun_connecting;
static uint64_t target, last_reached, target_sent; /* the message that is awaited */
static unsigned reached;

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000 * MILLISECOND + (uint64_t)time.tv_nsec;
}

static void *allocated(void *memory) {
    if (!memory)
        err(1, "memory");
    return memory;
}

static void text_set(struct text *text, const char *data, size_t size) {
    if (size > text->room) {
        text->room = size + 32;
        text->data = allocated(realloc(text->data, text->room));
    }
    memcpy(text->data, data, size);
    text->size = size;
}

static void text_add(struct text *text, const char *data, size_t size, size_t expected) {
    size_t wanted = text->size + size > expected ? text->size + size : expected;
    if (wanted > text->room) {
        text->room = wanted + wanted / 4;
        text->data = allocated(realloc(text->data, text->room));
    }
    memcpy(text->data + text->size, data, size);
    text->size += size;
}

static void text_free(struct text *text) {
    free(text->data);
    *text = (struct text){0};
}

static void queue_add(struct queue *queue, uint32_t number) {
    if (!queue->clients) {
        queue->clients = allocated(malloc(plan.clients * sizeof *queue->clients));
        queue->due = allocated(malloc(plan.clients * sizeof *queue->due));
    }
    size_t at = (queue->head + queue->count++) % plan.clients;
    queue->clients[at] = number;
    queue->due[at] = now() + queue->delay;
}

/* Take out the next client that is due; false if there is none. */
static bool queue_take(struct queue *queue, uint32_t *number) {
    if (!queue->count || queue->due[queue->head] > now())
        return false;
    *number = queue->clients[queue->head];
    queue->head = (queue->head + 1) % plan.clients;
    queue->count--;
    return true;
}

static void set_state(struct client *client, enum state state) {
    parked += (unsigned)AT_REST(state) - (unsigned)AT_REST(client->state);
    arriving += (unsigned)ARRIVING(state) - (unsigned)ARRIVING(client->state);
    client->state = state;
}

static void drop(struct client *client) {
    if (client->socket >= 0)
        close(client->socket);
    client->socket = -1;
    text_free(&client->partial);
    client->needed = 0;
    set_state(client, CLOSED);
}

static void retry(struct client *client) {
    drop(client);
    counts.reconnects++;
    queue_add(&retries, (uint32_t)(client - clients));
}

/* Send a client's next request from byte `from` on: not 0 when it is the second part of a cut one. */
static void ask(struct client *client, size_t from) {
    static char request[MAX_REQUEST];
    struct span captured[MAX_CAPTURES];
    if (stopped)
        return;
    bool known = client->captured[0].size > 0;
    for (unsigned i = 0; i < MAX_CAPTURES; i++)
        captured[i] = (struct span){client->captured[i].data, client->captured[i].size};
    uint32_t number = (uint32_t)(client - clients);
    size_t size = plan_request(&plan, known ? &plan.next : &plan.first, number, captured, request, sizeof request);
    if (!size)
        errx(1, "a request is longer than %d bytes", MAX_REQUEST);
    size_t until = options.cut && !from && options.cut < size ? options.cut : size;
    ssize_t sent = send(client->socket, request + from, until - from, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent != (ssize_t)(until - from)) {
        counts.cut++;
        retry(client);
        return;
    }
    if (until < size) {
        set_state(client, SENDING);
        queue_add(&second_parts, number);
        return;
    }
    counts.requests++;
    client->asked = now();
    set_state(client, known || plan.hold ? PARKED : ASKING_FIRST);
}

/* Ask again, or wait for the turn. */
static void go_on(struct client *client) {
    if (!options.paced) {
        ask(client, 0);
        return;
    }
    set_state(client, RESTING);
    if (client->in_line)
        return;
    client->in_line = true;
    resting.clients[(resting.head + resting.count++) % plan.clients] = (uint32_t)(client - clients);
}

/* Have clients send what is due. Where all are busy, the turns wait, and the time from turn to answer grows. */
static void take_turns(void) {
    while (interval && turn <= now() && resting.count) {
        struct client *client = clients + resting.clients[resting.head];
        resting.head = (resting.head + 1) % plan.clients;
        resting.count--;
        client->in_line = false;
        if (client->state != RESTING)
            continue;
        ask(client, 0);
        client->asked = turn;
        turn += interval;
    }
}

static void pace(uint64_t rate) {
    interval = rate ? 1000 * MILLISECOND / rate : 0;
    turn = now() + interval;
    struct timespec every = {(time_t)(interval / (1000 * MILLISECOND)), (long)(interval % (1000 * MILLISECOND))};
    struct itimerspec timer = {.it_interval = every, .it_value = every};
    if (timerfd_settime(ticks, 0, &timer, NULL) < 0)
        err(1, "timerfd_settime");
}

static void dial(uint32_t number) {
    struct client *client = clients + number;
    struct sockaddr_in source = {.sin_family = AF_INET}, server = {.sin_family = AF_INET};
    int on = 1;
    client->socket = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (client->socket < 0)
        err(1, "socket");
    setsockopt(client->socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    /* The port is chosen when the other end is known: so each pair of addresses has all ports. */
    setsockopt(client->socket, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    source.sin_addr.s_addr = htonl(INADDR_LOOPBACK - 1 + options.first_source + number % options.sources);
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    server.sin_port = htons((uint16_t)options.port);
    if (bind(client->socket, (struct sockaddr *)&source, sizeof source) < 0)
        err(1, "bind");
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.u32 = number};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, client->socket, &event) < 0)
        err(1, "epoll_ctl");
    set_state(client, CONNECTING);
    if (connect(client->socket, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS) {
        counts.refused++;
        retry(client);
    }
}

static void dial_more(void) {
    uint64_t allowed = plan.clients;
    if (options.spread && to_connect < plan.clients) {
        allowed = (now() - begun_connecting) * plan.clients / (options.spread * MILLISECOND) + 1;
        if (allowed > plan.clients)
            allowed = plan.clients;
    }
    while (to_connect < allowed && (!options.connecting || arriving < options.connecting))
        dial(to_connect++);
}

static void take_message(struct client *client, uint64_t number, uint64_t sent, uint64_t arrived) {
    counts.messages++;
    if (!options.requests)
        histogram_add(&counts.latency, arrived > sent ? (arrived - sent) / 1000 : 0);
    if (number <= client->last) {
        counts.doubled++;
        return;
    }
    counts.lost += number - client->last - 1;
    if (client->last < target && number >= target) {
        reached++;
        last_reached = arrived;
        target_sent = sent;
    }
    client->last = number;
}

static void take_messages(struct client *client, struct span body, uint64_t arrived) {
    const char *at = body.data, *end = body.data + body.size;
    while ((at = memmem(at, (size_t)(end - at), "{\"n\":", 5))) {
        uint64_t number = 0, sent = 0;
        for (at += 5; at < end && *at >= '0' && *at <= '9'; at++)
            number = number * 10 + (uint64_t)(*at - '0');
        if (end - at < 5 || memcmp(at, ",\"t\":", 5) != 0)
            continue;
        for (at += 5; at < end && *at >= '0' && *at <= '9'; at++)
            sent = sent * 10 + (uint64_t)(*at - '0');
        take_message(client, number, sent, arrived);
    }
}

static void take_answer(struct client *client, const struct answer *answer) {
    uint64_t arrived = now();
    counts.answers++;
    counts.last_answer = arrived;
    if (!counts.first_answer)
        counts.first_answer = arrived;
    if (options.requests)
        histogram_add(&counts.latency, (arrived - client->asked) / 1000);
    if (answer->status >= 0 && answer->status < STATUSES)
        counts.statuses[answer->status]++;
    for (unsigned i = 0; i < plan.captures.count; i++)
        if (answer->captured[i].size)
            text_set(client->captured + i, answer->captured[i].data, answer->captured[i].size);
    if (answer->status == 200)
        take_messages(client, answer->body, arrived);
    else if (answer->status == 204 || answer->status == 304)
        counts.empty++;
    set_state(client, SENDING);
    if (answer->close || (answer->status != 200 && answer->status != 204 && answer->status != 304))
        retry(client);
}

/* Take all answers out of a buffer; return how many bytes are left of one that is partial, or -1 when the client was dropped. */
static ssize_t take_answers(struct client *client, char *data, size_t size) {
    while (size) {
        struct answer answer;
        enum progress progress = answer_read(data, size, &plan.captures, &answer, &client->needed);
        if (progress == ANSWER_PARTIAL)
            return (ssize_t)size;
        if (progress == ANSWER_BROKEN || (client->state != PARKED && client->state != ASKING_FIRST)) {
            counts.broken++;
            retry(client);
            return -1;
        }
        data += client->needed;
        size -= client->needed;
        client->needed = 0;
        take_answer(client, &answer);
        if (client->state == CLOSED)
            return -1;
        if (!size)
            break;
    }
    return 0;
}

static void receive(struct client *client) {
    for (;;) {
        ssize_t got = recv(client->socket, buffer, sizeof buffer, 0);
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (got <= 0) {
            /* All other connections have a request under way, except after `stop`. */
            if (!stopped && client->state != RESTING)
                counts.cut++;
            retry(client);
            return;
        }
        counts.bytes += (uint64_t)got;
        struct text *partial = &client->partial;
        ssize_t left;
        if (partial->size) {
            text_add(partial, buffer, (size_t)got, client->needed);
            if (partial->size < client->needed)
                continue;
            left = take_answers(client, partial->data, partial->size);
            if (left >= 0 && (size_t)left < partial->size) {
                struct text rest = {0};
                if (left)
                    text_add(&rest, partial->data + partial->size - left, (size_t)left, 0);
                text_free(partial);
                *partial = rest;
            }
        } else {
            left = take_answers(client, buffer, (size_t)got);
            if (left > 0)
                text_add(partial, buffer + got - left, (size_t)left, client->needed);
        }
        if (left < 0)
            return;
        if (!left && client->state == SENDING)
            go_on(client);
        /* A short read emptied the socket; whatever comes later is a new event. */
        if ((size_t)got < sizeof buffer || client->state == CLOSED)
            return;
    }
}

static void connected(struct client *client) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(client->socket, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
        counts.refused++;
        retry(client);
        return;
    }
    set_state(client, SENDING);
    go_on(client);
}

static void storm(void) {
    /* A reset connection leaves no port behind that waits. */
    struct linger linger = {.l_onoff = 1};
    for (uint32_t i = 0; i < plan.clients; i++) {
        if (clients[i].socket >= 0)
            setsockopt(clients[i].socket, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
        drop(clients + i);
    }
    second_parts.count = retries.count = 0;
    options.connecting = 0;
}

static void begin_connecting(void) {
    to_connect = 0;
    begun_connecting = now();
    telling_parked = true;
}

static unsigned count_resting(void) {
    unsigned count = 0;
    for (uint32_t i = 0; i < plan.clients; i++)
        count += clients[i].state == RESTING;
    return count;
}

static void report(void) {
    printf("{\"event\":\"report\",\"now\":%" PRIu64 ",\"clients\":%u,\"parked\":%u", now(), plan.clients, parked);
    printf(",\"resting\":%u", count_resting());
    printf(",\"answers\":%" PRIu64 ",\"empty\":%" PRIu64 ",\"messages\":%" PRIu64, counts.answers, counts.empty, counts.messages);
    printf(",\"bytes\":%" PRIu64 ",\"requests\":%" PRIu64, counts.bytes, counts.requests);
    printf(",\"lost\":%" PRIu64 ",\"doubled\":%" PRIu64, counts.lost, counts.doubled);
    printf(",\"cut\":%" PRIu64 ",\"broken\":%" PRIu64 ",\"refused\":%" PRIu64, counts.cut, counts.broken, counts.refused);
    printf(",\"reconnects\":%" PRIu64, counts.reconnects);
    printf(",\"first_answer\":%" PRIu64 ",\"last_answer\":%" PRIu64, counts.first_answer, counts.last_answer);
    printf(",\"statuses\":{");
    const char *comma = "";
    for (int status = 0; status < STATUSES; status++)
        if (counts.statuses[status]) {
            printf("%s\"%d\":%" PRIu64, comma, status, counts.statuses[status]);
            comma = ",";
        }
    printf("},\"max_us\":%" PRIu64 ",\"histogram\":[", counts.latency.max);
    comma = "";
    for (unsigned i = 0; i < HISTOGRAM_SIZE; i++)
        if (counts.latency.counts[i]) {
            printf("%s[%u,%" PRIu64 "]", comma, i, counts.latency.counts[i]);
            comma = ",";
        }
    printf("]}\n");
}

static void await(uint64_t number) {
    target = number;
    reached = 0;
    for (uint32_t i = 0; i < plan.clients; i++)
        reached += clients[i].last >= target;
}

static void obey(const char *line) {
    uint64_t number;
    if (!strcmp(line, "connect"))
        begin_connecting();
    else if (!strcmp(line, "storm")) {
        storm();
        begin_connecting();
    } else if (sscanf(line, "await %" SCNu64, &number) == 1)
        await(number);
    else if (sscanf(line, "pace %" SCNu64, &number) == 1)
        pace(number);
    else if (!strcmp(line, "start"))
        memset(&counts, 0, sizeof counts);
    else if (!strcmp(line, "report"))
        report();
    else if (!strcmp(line, "stop"))
        stopped = true;
    else if (!strcmp(line, "quit"))
        exit(0);
    else
        errx(1, "unknown command: %s", line);
}

static void read_commands(void) {
    static char lines[4096];
    static size_t size;
    ssize_t got = read(STDIN_FILENO, lines + size, sizeof lines - size - 1);
    if (got <= 0)
        exit(0);
    size += (size_t)got;
    lines[size] = 0;
    char *at = lines;
    for (char *end; (end = strchr(at, '\n')); at = end + 1) {
        *end = 0;
        obey(at);
    }
    size -= (size_t)(at - lines);
    memmove(lines, at, size);
}

/* Say what has come true. */
static void tell(void) {
    if (telling_parked && parked == plan.clients) {
        telling_parked = false;
        printf("{\"event\":\"parked\",\"now\":%" PRIu64 ",\"begun\":%" PRIu64 "}\n", now(), begun_connecting);
    }
    if (target && reached == plan.clients && parked == plan.clients) {
        printf("{\"event\":\"reached\",\"now\":%" PRIu64 ",\"n\":%" PRIu64 ",\"sent\":%" PRIu64 ",\"last\":%" PRIu64 "}\n", now(),
               target, target_sent, last_reached);
        target = 0;
    }
    fflush(stdout);
}

static void run(void) {
    static struct epoll_event events[512];
    for (;;) {
        uint32_t number;
        dial_more();
        while (queue_take(&second_parts, &number))
            if (clients[number].state == SENDING)
                ask(clients + number, options.cut);
        while (queue_take(&retries, &number))
            if (clients[number].state == CLOSED && !stopped)
                dial(number);
        take_turns();
        tell();
        int timeout = second_parts.count || to_connect < plan.clients ? 1 : retries.count ? 10 : -1;
        int count = epoll_wait(poller, events, sizeof events / sizeof *events, timeout);
        if (count < 0 && errno != EINTR)
            err(1, "epoll_wait");
        for (int i = 0; i < count; i++) {
            if (events[i].data.u32 == COMMANDS) {
                read_commands();
                continue;
            }
            if (events[i].data.u32 == TICKS) {
                uint64_t passed;
                if (read(ticks, &passed, sizeof passed) < 0 && errno != EAGAIN)
                    err(1, "timerfd");
                continue;
            }
            struct client *client = clients + events[i].data.u32;
            if (client->state == CONNECTING && events[i].events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
                connected(client);
            if (client->state > CONNECTING && events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP | EPOLLRDHUP))
                receive(client);
        }
    }
}

static void parse_option(const char *given) {
    static const struct {
        const char *name;
        unsigned *value;
    } known[] = {
        {"port", &options.port},       {"first_source", &options.first_source}, {"sources", &options.sources},
        {"spread", &options.spread},   {"connecting", &options.connecting},     {"cut", &options.cut},
        {"requests", &options.requests}, {"paced", &options.paced},
    };
    const char *equals = strchr(given, '=');
    for (size_t i = 0; equals && i < sizeof known / sizeof *known; i++)
        if (strlen(known[i].name) == (size_t)(equals - given) && !strncmp(known[i].name, given, (size_t)(equals - given))) {
            *known[i].value = (unsigned)strtoul(equals + 1, NULL, 10);
            return;
        }
    errx(1, "unknown option: %s", given);
}

int main(int count, char **arguments) {
    if (count < 2)
        errx(1, "usage: load PLAN [name=value ...]");
    for (int i = 2; i < count; i++)
        parse_option(arguments[i]);
    plan_read(arguments[1], &plan);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur < plan.clients + 16)
        errx(1, "%u clients need more open files than the limit of %ju", plan.clients, (uintmax_t)limit.rlim_cur);
    signal(SIGPIPE, SIG_IGN);
    clients = allocated(calloc(plan.clients, sizeof *clients));
    for (uint32_t i = 0; i < plan.clients; i++)
        clients[i].socket = -1;
    to_connect = plan.clients;
    resting.clients = allocated(malloc(plan.clients * sizeof *resting.clients));
    ticks = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    poller = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = COMMANDS};
    if (poller < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, STDIN_FILENO, &event) < 0)
        err(1, "epoll");
    struct epoll_event tick = {.events = EPOLLIN, .data.u32 = TICKS};
    if (ticks < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, ticks, &tick) < 0)
        err(1, "timerfd");
    run();
}
