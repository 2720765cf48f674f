/* The plan of a load: the requests' templates and what each client puts into them, read from a file. */

#ifndef BENCH_PLAN_H
#define BENCH_PLAN_H

#include "answer.h"

#include <stdbool.h>
#include <stddef.h>

#define MAX_FIELDS 10

/* A piece of a template: text, or a client's own field, or a field captured from the answer before. */
struct piece {
    enum { TEXT, FIELD, CAPTURED } kind;
    unsigned number;
    struct span text;
};

struct template {
    unsigned count;
    struct piece pieces[64];
};

struct plan {
    struct template first; /* asked without a cursor */
    struct template next;
    bool hold; /* the first request is held as the next ones are */
    struct captures captures;
    unsigned clients;
    unsigned fields;      /* fields of one client */
    struct span *values;  /* fields of all clients, one client after the other */
};

/* Read a plan; on a mistake say so and end the process. */
void plan_read(const char *file, struct plan *plan);

/* Write a client's request and return its size, 0 if it does not fit. */
size_t plan_request(const struct plan *plan, const struct template *template, unsigned client, const struct span *captured,
                    char *out, size_t size);

#endif
