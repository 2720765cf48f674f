/* Reading HTTP/1.1 answers out of a buffer. */

#define _GNU_SOURCE
#include "answer.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

static bool named(const char *line, size_t name_size, const char *name, size_t size) {
    return name_size == size && strncasecmp(line, name, size) == 0;
}

static bool holds(struct span value, const char *word) {
    size_t size = strlen(word);
    for (size_t i = 0; i + size <= value.size; i++)
        if (strncasecmp(value.data + i, word, size) == 0)
            return true;
    return false;
}

/* Join the chunks in place. */
static enum progress join_chunks(char *data, size_t size, size_t *joined, size_t *taken, bool dry) {
    size_t at = 0, out = 0;
    for (;;) {
        char *end = memmem(data + at, size - at, "\r\n", 2);
        if (!end)
            return ANSWER_PARTIAL;
        char *stop;
        unsigned long length = strtoul(data + at, &stop, 16);
        if (stop == data + at)
            return ANSWER_BROKEN;
        at = (size_t)(end - data) + 2;
        if (length > size - at || size - at - length < 2)
            return ANSWER_PARTIAL;
        if (length == 0) {
            *joined = out;
            *taken = at + 2; /* no server here sends trailers */
            return ANSWER_WHOLE;
        }
        if (!dry)
            memmove(data + out, data + at, length);
        out += length;
        at += length + 2;
    }
}

enum progress answer_read(char *data, size_t size, const struct captures *captures, struct answer *answer, size_t *size_needed) {
    *size_needed = size + 1;
    char *head_end = memmem(data, size, "\r\n\r\n", 4);
    if (!head_end)
        return ANSWER_PARTIAL;
    if (strncmp(data, "HTTP/1.", 7) != 0)
        return ANSWER_BROKEN;
    memset(answer, 0, sizeof *answer);
    answer->status = atoi(data + 9);
    bool sized = false, chunked = false;
    size_t length = 0;
    for (char *line = memmem(data, size, "\r\n", 2); line < head_end;) {
        line += 2;
        char *end = memmem(line, (size_t)(head_end + 2 - line), "\r\n", 2);
        char *colon = memchr(line, ':', (size_t)(end - line));
        if (!colon)
            return ANSWER_BROKEN;
        size_t name_size = (size_t)(colon - line);
        char *start = colon + 1;
        while (start < end && *start == ' ')
            start++;
        struct span value = {start, (size_t)(end - start)};
        if (named(line, name_size, "content-length", 14)) {
            sized = true;
            length = strtoul(start, NULL, 10);
        } else if (named(line, name_size, "transfer-encoding", 17)) {
            chunked = holds(value, "chunked");
        } else if (named(line, name_size, "connection", 10)) {
            answer->close = holds(value, "close");
        } else {
            for (unsigned i = 0; i < captures->count; i++)
                if (named(line, name_size, captures->names[i].data, captures->names[i].size))
                    answer->captured[i] = value;
        }
        line = end;
    }
    char *body = head_end + 4;
    size_t head = (size_t)(body - data), taken = 0;
    if (answer->status == 204 || answer->status == 304) {
        length = 0;
    } else if (chunked) {
        enum progress progress = join_chunks(body, size - head, &length, &taken, true);
        if (progress != ANSWER_WHOLE)
            return progress;
        join_chunks(body, size - head, &length, &taken, false);
    } else if (!sized) {
        return ANSWER_BROKEN;
    }
    if (!taken)
        taken = length;
    *size_needed = head + taken;
    if (*size_needed > size)
        return ANSWER_PARTIAL;
    answer->body = (struct span){body, length};
    return ANSWER_WHOLE;
}
