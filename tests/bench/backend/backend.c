/*
 * A backend for proxies to stand in front of, on one thread and with one epoll. It answers GET requests (none has a body):
 *
 *     /hold…      held until it is told to answer
 *     /healthz    answered at once, whatever happens to the others
 *     all else    answered at once, or after the delay that it was told
 *
 * Usage: backend PORT SIZE, with the bytes of a body. Commands come in lines on standard input, and after each the counts go as one
 * line of JSON to standard output:
 *
 *     report     do nothing else
 *     answer     answer all that is held
 *     delay N    from now on answer N milliseconds after the request
 *
 * SIGTERM ends it gracefully: it stops listening, closes idle connections, answers what is held at once and what is delayed when it
 * is due, each with `Connection: close`, and exits with the last connection. It also exits with the end of standard input.
 */

#define _GNU_SOURCE

#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MILLISECOND UINT64_C(1000000)
#define MAX_HEAD (16 << 10)
#define MAX_DELAYED (1 << 16)

enum state { ABSENT, IDLE, HELD, DELAYED };

struct connection {
    enum state state;
    bool last;        /* the client wants it closed after the answer */
    uint32_t request; /* counts up: an entry of `delayed` that has another number is out of date */
    char *partial;    /* what has come of the next head */
    size_t size;
};

static struct {
    int connection;
    uint32_t request;
    uint64_t due;
} delayed[MAX_DELAYED];
static size_t delayed_head, delayed_count;

static struct {
    uint64_t requests, checks, accepted, open, held, delayed;
} counts;

static struct connection *connections; /* by file descriptor */
static int most_files, poller, listener, signals;
static uint64_t delay; /* nanoseconds */
static bool ending;
static char *answers[2]; /* the second one closes the connection */
static size_t answer_sizes[2];

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

static void make_answers(size_t size) {
    for (int closing = 0; closing < 2; closing++) {
        char *text = allocated(malloc(size + 256));
        int head = sprintf(text, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n%sContent-Length: %zu\r\n\r\n",
                           closing ? "Connection: close\r\n" : "", size);
        memset(text + head, 'x', size);
        answers[closing] = text;
        answer_sizes[closing] = (size_t)head + size;
    }
}

static void set_state(struct connection *connection, enum state state) {
    counts.open += (uint64_t)(state != ABSENT) - (uint64_t)(connection->state != ABSENT);
    counts.held += (uint64_t)(state == HELD) - (uint64_t)(connection->state == HELD);
    counts.delayed += (uint64_t)(state == DELAYED) - (uint64_t)(connection->state == DELAYED);
    connection->state = state;
}

static void drop(int file) {
    struct connection *connection = connections + file;
    close(file);
    free(connection->partial);
    connection->partial = NULL;
    connection->size = 0;
    set_state(connection, ABSENT);
}

static void answer(int file) {
    struct connection *connection = connections + file;
    bool closing = ending || connection->last;
    set_state(connection, IDLE);
    /* Proxies read what they asked for: an answer that does not fit into the socket is a broken connection. */
    if (send(file, answers[closing], answer_sizes[closing], MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)answer_sizes[closing] || closing)
        drop(file);
}

static void put_off(int file) {
    struct connection *connection = connections + file;
    if (delayed_count == MAX_DELAYED)
        errx(1, "more than %d requests are delayed", MAX_DELAYED);
    size_t at = (delayed_head + delayed_count++) % MAX_DELAYED;
    delayed[at].connection = file;
    delayed[at].request = connection->request;
    delayed[at].due = now() + delay;
    set_state(connection, DELAYED);
}

static void answer_due(void) {
    for (; delayed_count && delayed[delayed_head].due <= now(); delayed_count--, delayed_head = (delayed_head + 1) % MAX_DELAYED) {
        struct connection *connection = connections + delayed[delayed_head].connection;
        if (connection->state == DELAYED && connection->request == delayed[delayed_head].request)
            answer(delayed[delayed_head].connection);
    }
}

static bool starts(const char *head, const char *with) {
    return strncmp(head, with, strlen(with)) == 0;
}

/* Take one whole head, which ends with an empty line and a zero byte. */
static void take(int file, const char *head) {
    struct connection *connection = connections + file;
    connection->request++;
    connection->last = strcasestr(head, "\nconnection: close") || strstr(head, " HTTP/1.0\r\n");
    const char *target = strchr(head, ' ');
    if (!target) {
        drop(file);
        return;
    }
    if (starts(target + 1, "/healthz")) {
        counts.checks++;
        answer(file);
        return;
    }
    counts.requests++;
    if (starts(target + 1, "/hold") && !ending)
        set_state(connection, HELD);
    else if (delay)
        put_off(file);
    else
        answer(file);
}

static void receive(int file) {
    static char buffer[MAX_HEAD + 1];
    struct connection *connection = connections + file;
    size_t size = connection->size;
    if (size)
        memcpy(buffer, connection->partial, size);
    ssize_t got = recv(file, buffer + size, MAX_HEAD - size, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        drop(file);
        return;
    }
    size += (size_t)got;
    buffer[size] = 0;
    connection->size = 0;
    char *end = strstr(buffer, "\r\n\r\n");
    /* No proxy here pipelines: what comes behind a head, or before the answer, is nothing that it may send. */
    if (end && (end + 4 != buffer + size || connection->state != IDLE)) {
        drop(file);
        return;
    }
    if (end) {
        take(file, buffer);
        return;
    }
    if (size == MAX_HEAD) {
        drop(file);
        return;
    }
    connection->partial = allocated(realloc(connection->partial, size));
    memcpy(connection->partial, buffer, size);
    connection->size = size;
}

static void watch(int file) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = file};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, file, &event) < 0)
        err(1, "epoll_ctl");
}

static void accept_all(void) {
    int file, on = 1;
    while ((file = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        setsockopt(file, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        counts.accepted++;
        set_state(connections + file, IDLE);
        watch(file);
    }
}

static void answer_held(void) {
    for (int file = 0; file < most_files; file++)
        if (connections[file].state == HELD)
            answer(file);
}

static void end_gracefully(void) {
    struct signalfd_siginfo told;
    if (read(signals, &told, sizeof told) < 0)
        err(1, "signalfd");
    ending = true;
    accept_all(); /* the kernel has accepted them already, and would reset them */
    close(listener);
    answer_held();
    for (int file = 0; file < most_files; file++)
        if (connections[file].state == IDLE && !connections[file].size) {
            receive(file); /* a request that has come just now */
            if (connections[file].state == IDLE && !connections[file].size)
                drop(file);
        }
}

static void listen_on(unsigned port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int on = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 4096) < 0)
        err(1, "port %u", port);
    watch(listener);
}

static void report(void) {
    printf("{\"requests\":%" PRIu64 ",\"checks\":%" PRIu64 ",\"accepted\":%" PRIu64, counts.requests, counts.checks, counts.accepted);
    printf(",\"open\":%" PRIu64 ",\"held\":%" PRIu64 ",\"delayed\":%" PRIu64 "}\n", counts.open, counts.held, counts.delayed);
    fflush(stdout);
}

static void obey(const char *line) {
    uint64_t milliseconds;
    if (!strcmp(line, "answer"))
        answer_held();
    else if (sscanf(line, "delay %" SCNu64, &milliseconds) == 1)
        delay = milliseconds * MILLISECOND;
    else if (strcmp(line, "report") != 0)
        errx(1, "unknown command: %s", line);
    report();
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

static void run(void) {
    static struct epoll_event events[512];
    while (!ending || counts.open) {
        int count = epoll_wait(poller, events, sizeof events / sizeof *events, delayed_count ? 1 : -1);
        if (count < 0 && errno != EINTR)
            err(1, "epoll_wait");
        bool told = false;
        for (int i = 0; i < count; i++) {
            int file = events[i].data.fd;
            if (file == listener && !ending)
                accept_all();
            else if (file == STDIN_FILENO)
                read_commands();
            else if (file == signals)
                told = true;
            else if (connections[file].state != ABSENT)
                receive(file);
        }
        answer_due();
        if (told && !ending) /* after all that had come */
            end_gracefully();
    }
}

int main(int count, char **arguments) {
    if (count != 3)
        errx(1, "usage: backend PORT SIZE");
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    most_files = (int)limit.rlim_cur;
    connections = allocated(calloc((size_t)most_files, sizeof *connections));
    make_answers(strtoul(arguments[2], NULL, 10));
    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigprocmask(SIG_BLOCK, &ends, NULL);
    signals = signalfd(-1, &ends, SFD_CLOEXEC);
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (signals < 0 || poller < 0)
        err(1, "epoll");
    watch(signals);
    watch(STDIN_FILENO);
    listen_on((unsigned)strtoul(arguments[1], NULL, 10));
    run();
}
