/*
 * The plan of a load, read from a file:
 *
 *     first BYTES\n<template of BYTES bytes>\n
 *     next BYTES\n<template>\n
 *     hold 0|1\n
 *     capture FIELD-NAME\n          up to two
 *     clients COUNT FIELDS\n
 *     value\tvalue\n                COUNT lines of FIELDS values
 *
 * In a template {0} to {9} stand for the client's own values, {a} and {b} for the captured fields.
 */

#define _GNU_SOURCE
#include "plan.h"

#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char *whole_file(const char *name, size_t *size) {
    struct stat status;
    int file = open(name, O_RDONLY);
    if (file < 0 || fstat(file, &status) < 0)
        err(1, "%s", name);
    *size = (size_t)status.st_size;
    char *text = malloc(*size + 1);
    if (!text)
        err(1, "%s", name);
    for (size_t got = 0; got < *size;) {
        ssize_t count = read(file, text + got, *size - got);
        if (count <= 0)
            err(1, "%s", name);
        got += (size_t)count;
    }
    text[*size] = 0;
    close(file);
    return text;
}

static void add_piece(struct template *template, struct piece piece) {
    if (template->count == sizeof template->pieces / sizeof *template->pieces)
        errx(1, "a template has too many marks");
    template->pieces[template->count++] = piece;
}

static void parse_template(struct template *template, const char *text, size_t size) {
    const char *end = text + size, *start = text;
    for (const char *at = text; at + 2 < end; at++) {
        bool own = at[1] >= '0' && at[1] <= '9', captured = at[1] == 'a' || at[1] == 'b';
        if (at[0] != '{' || at[2] != '}' || !(own || captured))
            continue;
        add_piece(template, (struct piece){TEXT, 0, {start, (size_t)(at - start)}});
        add_piece(template, (struct piece){own ? FIELD : CAPTURED, (unsigned)(at[1] - (own ? '0' : 'a')), {0}});
        start = at + 3;
    }
    add_piece(template, (struct piece){TEXT, 0, {start, (size_t)(end - start)}});
}

static char *parse_values(struct plan *plan, char *at) {
    plan->values = calloc((size_t)plan->clients * plan->fields + 1, sizeof *plan->values);
    if (!plan->values)
        err(1, "the clients' values");
    for (size_t i = 0; i < (size_t)plan->clients * plan->fields; i++) {
        size_t size = strcspn(at, "\t\n");
        if (!at[size])
            errx(1, "the plan ends before its last client");
        plan->values[i] = (struct span){at, size};
        at += size + 1;
    }
    return at;
}

static void check_template(const struct plan *plan, const struct template *template) {
    for (unsigned i = 0; i < template->count; i++) {
        const struct piece *piece = template->pieces + i;
        if ((piece->kind == FIELD && piece->number >= plan->fields) ||
            (piece->kind == CAPTURED && piece->number >= plan->captures.count))
            errx(1, "a template has a mark that stands for nothing");
    }
}

void plan_read(const char *file, struct plan *plan) {
    size_t size;
    char *at = whole_file(file, &size);
    memset(plan, 0, sizeof *plan);
    while (!plan->clients) {
        char word[16], name[64];
        size_t bytes;
        int hold, taken = 0;
        if (sscanf(at, "%15s %zu\n%n", word, &bytes, &taken) == 2 && (!strcmp(word, "first") || !strcmp(word, "next"))) {
            /* The scan skips white space at the start of a template: there is none in a request line. */
            parse_template(strcmp(word, "first") ? &plan->next : &plan->first, at + taken, bytes);
            at += (size_t)taken + bytes + 1;
        } else if (sscanf(at, "hold %d\n%n", &hold, &taken) == 1 && taken) {
            plan->hold = hold;
            at += taken;
        } else if (sscanf(at, "capture %63s\n%n", name, &taken) == 1 && taken) {
            if (plan->captures.count == MAX_CAPTURES)
                errx(1, "a plan captures at most %d fields", MAX_CAPTURES);
            plan->captures.names[plan->captures.count++] = (struct span){at + strlen("capture "), strlen(name)};
            at += taken;
        } else if (sscanf(at, "clients %u %u%n", &plan->clients, &plan->fields, &taken) == 2 && taken) {
            if (!plan->clients || plan->fields > MAX_FIELDS)
                errx(1, "a plan needs clients with at most %d fields", MAX_FIELDS);
            at = parse_values(plan, at + taken + 1);
        } else {
            errx(1, "not a line of a plan: %.40s", at);
        }
    }
    check_template(plan, &plan->first);
    check_template(plan, &plan->next);
}

size_t plan_request(const struct plan *plan, const struct template *template, unsigned client, const struct span *captured,
                    char *out, size_t size) {
    const struct span *own = plan->values + (size_t)client * plan->fields;
    size_t used = 0;
    for (unsigned i = 0; i < template->count; i++) {
        const struct piece *piece = template->pieces + i;
        const struct span *text = piece->kind == TEXT    ? &piece->text
                                  : piece->kind == FIELD ? own + piece->number
                                                         : captured + piece->number;
        if (text->size > size - used)
            return 0;
        memcpy(out + used, text->data, text->size);
        used += text->size;
    }
    return used;
}
