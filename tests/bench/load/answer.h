/* Reading HTTP/1.1 answers out of a buffer. */

#ifndef BENCH_ANSWER_H
#define BENCH_ANSWER_H

#include <stdbool.h>
#include <stddef.h>

#define MAX_CAPTURES 2

struct span {
    const char *data;
    size_t size;
};

/* The header fields to keep from each answer. */
struct captures {
    unsigned count;
    struct span names[MAX_CAPTURES];
};

struct answer {
    int status;
    bool close;                         /* the server is going to close the connection */
    struct span captured[MAX_CAPTURES]; /* the values of the captured fields; empty where a field is absent */
    struct span body;
};

/* What the buffer holds of an answer. */
enum progress { ANSWER_PARTIAL, ANSWER_WHOLE, ANSWER_BROKEN };

/*
 * Read the answer at the start of the buffer. `size_needed` tells how many bytes make sense before the next try where the
 * answer is partial, and how many it took where it is whole. A chunked body is joined in place.
 */
enum progress answer_read(char *data, size_t size, const struct captures *captures, struct answer *answer, size_t *size_needed);

#endif
