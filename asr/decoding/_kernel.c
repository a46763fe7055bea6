/*
 * The prefix beam search: what BeamSearch does in NumPy, with the same operations in the same order, so that the results
 * are the same to the last bit. kernel.py hands over the arrays.
 *
 * It is quicker for four reasons: no intermediate arrays, a hash table where NumPy compares every prefix with every other,
 * a bar that rises as candidates are found, under which none is kept, and an upper bound of what the scorer may add, which
 * spares most candidates a look into tree and language model.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef _MSC_VER
#define ASR_THREAD_LOCAL __declspec(thread)
#else
#define ASR_THREAD_LOCAL _Thread_local
#endif

#include "_scoring.h"

enum { BLANK = 0, PAST = -1 };

static const double LN_2 = 0.693147180559945309417232121458;

/* Records as in state.py. */
typedef struct {
    uint64_t key, parent_key;
    int64_t last;
    double blank, label, fused;
    int64_t scorer[FIELDS];
    double best_blank, best_label;
    int64_t head_blank, head_label;
} Hypothesis;

typedef struct {
    int64_t parent, token, frame;
    double log_prob, fused;
} Entry;

/* A candidate for the next frame; position: among all candidates as NumPy lists them. */
typedef struct {
    double score;
    int64_t position, extension;
} Candidate;

typedef struct {
    int64_t row, token;
    double acoustic, fused, log_prob;
    int64_t scorer[FIELDS];
} Extension;

/* What settling and compacting know of an entry of the trace. */
typedef struct {
    int64_t depth;     /* tokens from the committed past to this one */
    int64_t following; /* the first entry of its path after the settled ones */
    int64_t onward;    /* paths that part or end after it */
    int64_t only;      /* what follows it, where one path goes on */
    int64_t index;     /* after compacting */
    char agrees;       /* with the settled tokens, as far as it reaches */
    char needed;
} Node;

typedef struct {
    void *items;
    size_t count, room, size;
} List;

typedef struct {
    Scorer scorer;
    int64_t tokens; /* of an emission */
    int64_t beam, most_tokens, horizon, settle_every;
    double threshold, token_threshold;
    List old, stayed, next; /* of Hypothesis */
    List trace, committed;  /* of Entry */
    List candidates, extensions, nodes;
    List total, next_total; /* of `old` and `stayed`: log-probability of both endings of each */
    List tried, column, joined, lives, table, settled;
} Search;

/* Room for so many items; 0 where memory is out. */
static int reserve(List *list, size_t count) {
    if (count > list->room) {
        size_t room = count > 2 * list->room ? count : 2 * list->room;
        void *items = realloc(list->items, room * list->size);
        if (!items)
            return 0;
        list->items = items;
        list->room = room;
    }
    return 1;
}

static void *append(List *list) {
    if (!reserve(list, list->count + 1))
        return NULL;
    return (char *)list->items + list->size * list->count++;
}

/* As NumPy's logaddexp has it; the first test only saves time: what it leaves out is too small to change x. */
static double log_add_exp(double x, double y) {
    double difference = x - y;
    if (difference > 40 && x < -1)
        return x;
    if (difference < -40 && y < -1)
        return y;
    if (x == y)
        return x + LN_2;
    if (difference > 0)
        return x + log1p(exp(-difference));
    return difference <= 0 ? y + log1p(exp(difference)) : difference;
}

/* _extend_key */
static uint64_t extend_key(uint64_t key, int64_t token) {
    uint64_t z = key + ((uint64_t)token + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static int64_t head(const Hypothesis *h) { return h->best_label > h->best_blank ? h->head_label : h->head_blank; }

static double likeliest(const Hypothesis *h) { return h->best_label > h->best_blank ? h->best_label : h->best_blank; }

/* _stay, of one hypothesis; total: of both its endings. */
static void stay(Hypothesis *h, double total, const double *emission) {
    int64_t last = head(h);
    double best = likeliest(h);
    h->blank = total + emission[BLANK];
    h->label += emission[h->last];
    h->best_blank = best + emission[BLANK];
    h->best_label += emission[h->last];
    h->head_blank = last;
}

static int before(const Candidate *a, const Candidate *b) {
    return a->score > b->score || (a->score == b->score && a->position < b->position);
}

/* Parts candidates [begin, end) into those before one of them and those after it; returns its place. */
static size_t part(Candidate *c, size_t begin, size_t end) {
    Candidate pivot = c[begin + (end - begin) / 2];
    c[begin + (end - begin) / 2] = c[end - 1];
    c[end - 1] = pivot;
    size_t place = begin;
    for (size_t i = begin; i < end - 1; i++)
        if (before(&c[i], &pivot)) {
            Candidate other = c[i];
            c[i] = c[place];
            c[place++] = other;
        }
    c[end - 1] = c[place];
    c[place] = pivot;
    return place;
}

/* Brings the best `wanted` of the candidates to the front, in any order (Hoare's quickselect). */
static void select_best(Candidate *c, size_t count, size_t wanted) {
    size_t begin = 0, end = count;
    while (wanted > begin && wanted < end) {
        size_t place = part(c, begin, end);
        if (place >= wanted)
            end = place;
        else
            begin = place + 1;
    }
}

/* A hash table of the live prefixes: a row for each key, open addressing; `mask` is its size less one. */
static int build_table(List *table, const Hypothesis *rows, size_t count, size_t *mask) {
    size_t size = 16;
    while (size < 4 * count)
        size *= 2;
    if (!reserve(table, size))
        return 0;
    int64_t *slots = table->items;
    memset(slots, -1, size * sizeof *slots);
    *mask = size - 1;
    for (size_t i = 0; i < count; i++) {
        size_t at = rows[i].key & *mask;
        while (slots[at] >= 0)
            at = (at + 1) & *mask;
        slots[at] = (int64_t)i;
    }
    return 1;
}

static int64_t find_row(const List *table, size_t mask, const Hypothesis *rows, uint64_t key) {
    const int64_t *slots = table->items;
    size_t at = key & mask;
    while (slots[at] >= 0 && rows[slots[at]].key != key)
        at = (at + 1) & mask;
    return slots[at];
}

/* Extensions that spell another live hypothesis join it; `joined` marks them, shape = (hypotheses, tokens tried). */
static int join(Search *s, const double *emission, int64_t frame) {
    const Hypothesis *old = s->old.items;
    Hypothesis *stayed = s->stayed.items;
    const double *total = s->total.items;
    const int64_t *column = s->column.items;
    char *joined = s->joined.items;
    size_t n = s->old.count, k = s->tried.count, mask;
    if (!build_table(&s->table, old, n, &mask))
        return 0;
    memset(joined, 0, n * k);
    for (size_t i = 0; i < n; i++) {
        int64_t token = old[i].last, at = column[token];
        int64_t parent = at < 0 ? -1 : find_row(&s->table, mask, old, old[i].parent_key);
        if (parent < 0)
            continue;
        const Hypothesis *from = &old[parent];
        int repeats = from->last == token;
        double extended = (repeats ? from->blank : total[parent]) + emission[token];
        double best = (repeats ? from->best_blank : likeliest(from)) + emission[token];
        joined[parent * (int64_t)k + at] = 1;
        stayed[i].label = log_add_exp(stayed[i].label, extended);
        if (best > stayed[i].best_label) {
            Entry *entry = append(&s->trace);
            if (!entry)
                return 0;
            *entry = (Entry){repeats ? from->head_blank : head(from), token, frame, emission[token], old[i].fused};
            stayed[i].best_label = best;
            stayed[i].head_label = (int64_t)s->trace.count - 1;
        }
    }
    return 1;
}

/* The lowest of the best `beam` candidates' scores, those that remain. */
static double cut(Search *s) {
    Candidate *c = s->candidates.items;
    size_t beam = (size_t)s->beam;
    select_best(c, s->candidates.count, beam);
    s->candidates.count = beam;
    double lowest = c[0].score;
    for (size_t i = 1; i < beam; i++)
        lowest = c[i].score < lowest ? c[i].score : lowest;
    return lowest;
}

/* The score of a hypothesis with one more token; *fused: what the scorer has added to it, with `state` after it. */
static double extended(const Search *s, size_t row, int64_t token, const double *emission, int64_t *state, double *fused) {
    const Hypothesis *from = (const Hypothesis *)s->old.items + row;
    double acoustic = (token == from->last ? from->blank : ((const double *)s->total.items)[row]) + emission[token];
    double added = from->fused;
    memcpy(state, from->scorer, FIELDS * sizeof *state);
    if (s->scorer.words || s->scorer.hotwords)
        added += extend(&s->scorer, state, token);
    if (fused)
        *fused = added;
    return acoustic + added;
}

/* Marks the best candidates: hypotheses that stay as they are, and extensions. */
static int list_candidates(Search *s, const double *emission) {
    const Hypothesis *old = s->old.items, *stayed = s->stayed.items;
    const double *total = s->total.items;
    double *next_total = s->next_total.items;
    const int64_t *tried = s->tried.items;
    const char *joined = s->joined.items;
    const Words *words = s->scorer.words;
    size_t n = s->old.count, k = s->tried.count, beam = (size_t)s->beam;
    double best = -INFINITY, bar;
    s->candidates.count = s->extensions.count = 0;
    if (!reserve(&s->candidates, n))
        return 0;
    Candidate *candidates = s->candidates.items;
    size_t leader = 0;
    for (size_t i = 0; i < n; i++) {
        next_total[i] = log_add_exp(stayed[i].blank, stayed[i].label);
        double score = next_total[i] + stayed[i].fused;
        candidates[i] = (Candidate){score, (int64_t)i, -1};
        best = score > best ? score : best;
        leader = total[i] + old[i].fused > total[leader] + old[leader].fused ? i : leader;
    }
    s->candidates.count = n;
    for (size_t j = 0; j < k && n; j++) { /* only so that the bar is high from the first row on */
        int64_t state[FIELDS];
        double score = extended(s, leader, tried[j], emission, state, NULL);
        best = !joined[leader * k + j] && score > best ? score : best;
    }
    bar = best - s->threshold;
    double likeliest_beginning = -INFINITY, likeliest_inside = -INFINITY;
    for (size_t j = 0; j < k; j++) {
        double *most = words && words->begins[tried[j]] ? &likeliest_beginning : &likeliest_inside;
        *most = emission[tried[j]] > *most ? emission[tried[j]] : *most;
    }
    for (size_t i = 0; i < n; i++) {
        double beginning, inside, reached = total[i] + old[i].fused;
        most_added(&s->scorer, old[i].scorer, &beginning, &inside);
        if (reached + likeliest_beginning + beginning < bar && reached + likeliest_inside + inside < bar)
            continue;
        for (size_t j = 0; j < k; j++) {
            int64_t token = tried[j];
            double acoustic = (token == old[i].last ? old[i].blank : total[i]) + emission[token];
            double bound = acoustic + old[i].fused + (words && words->begins[token] ? beginning : inside);
            if (bound < bar || joined[i * k + j] || !(acoustic > -INFINITY))
                continue;
            if (words && bar > -INFINITY && is_forbidden(words, old[i].scorer, token))
                continue; /* only saves time: its score is below any bar */
            int64_t state[FIELDS];
            double fused, score = extended(s, i, token, emission, state, &fused);
            if (!(score >= bar))
                continue;
            Extension *extension = append(&s->extensions);
            Candidate *candidate = append(&s->candidates);
            if (!extension || !candidate)
                return 0;
            *extension = (Extension){(int64_t)i, token, acoustic, fused, emission[token], {0}};
            memcpy(extension->scorer, state, sizeof state);
            *candidate = (Candidate){score, (int64_t)(n + i * k + j), (int64_t)s->extensions.count - 1};
            if (score > best) {
                best = score;
                bar = best - s->threshold > bar ? best - s->threshold : bar;
            }
            if (s->candidates.count >= 2 * beam) { /* only so many of these can live on */
                double lowest = cut(s);
                bar = lowest > bar ? lowest : bar;
            }
        }
    }
    size_t kept = 0;
    candidates = s->candidates.items;
    for (size_t i = 0; i < s->candidates.count; i++)
        if (candidates[i].score >= best - s->threshold)
            candidates[kept++] = candidates[i];
    s->candidates.count = kept;
    if (kept > beam)
        cut(s);
    if (!reserve(&s->lives, n + s->extensions.count))
        return 0;
    char *lives = s->lives.items;
    memset(lives, 0, n + s->extensions.count);
    for (size_t i = 0; i < s->candidates.count; i++)
        lives[candidates[i].extension < 0 ? candidates[i].position : (int64_t)n + candidates[i].extension] = 1;
    return 1;
}

/* The hypotheses of the next frame: those that stay, then the new ones, each with an entry in the trace. */
static int survive(Search *s, int64_t frame) {
    const Hypothesis *old = s->old.items, *stayed = s->stayed.items;
    const Extension *extensions = s->extensions.items;
    const char *lives = s->lives.items;
    size_t n = s->old.count, count = 0;
    if (!reserve(&s->next, s->candidates.count) || !reserve(&s->total, s->candidates.count))
        return 0;
    Hypothesis *next = s->next.items;
    double *total = s->total.items; /* of the next frame from here on */
    const double *next_total = s->next_total.items;
    for (size_t i = 0; i < n; i++)
        if (lives[i]) {
            total[count] = next_total[i];
            next[count++] = stayed[i];
        }
    for (size_t i = 0; i < s->extensions.count; i++) {
        if (!lives[n + i])
            continue;
        const Extension *by = &extensions[i];
        const Hypothesis *from = &old[by->row];
        int repeats = from->last == by->token;
        Entry *entry = append(&s->trace);
        if (!entry)
            return 0;
        *entry = (Entry){repeats ? from->head_blank : head(from), by->token, frame, by->log_prob, by->fused};
        next[count] = (Hypothesis){
            .key = extend_key(from->key, by->token),
            .parent_key = from->key,
            .last = by->token,
            .blank = -INFINITY,
            .label = by->acoustic,
            .fused = by->fused,
            .best_blank = -INFINITY,
            .best_label = (repeats ? from->best_blank : likeliest(from)) + by->log_prob,
            .head_blank = (int64_t)s->trace.count - 1,
            .head_label = (int64_t)s->trace.count - 1,
        };
        memcpy(next[count].scorer, by->scorer, sizeof by->scorer);
        total[count++] = by->acoustic;
    }
    s->next.count = count;
    List last = s->old;
    s->old = s->next;
    s->next = last;
    return 1;
}

/* Lists the tokens that a frame tries, in order: BeamSearch._tokens_to_try; `column` is the place of each, or -1. */
static void choose_tokens(Search *s, const double *emission) {
    int64_t *tried = s->tried.items, *column = s->column.items;
    size_t count = 0, most = (size_t)s->most_tokens;
    double best = -INFINITY;
    for (int64_t token = 0; token < s->tokens; token++)
        best = emission[token] > best ? emission[token] : best;
    for (int64_t token = 0; token < s->tokens; token++) {
        column[token] = -1;
        if (token == BLANK || !(emission[token] >= best - s->token_threshold))
            continue;
        if (count == most && !(emission[token] > emission[tried[most - 1]]))
            continue;
        size_t place = count < most ? count++ : most - 1; /* likeliest first */
        for (; place > 0 && emission[tried[place - 1]] < emission[token]; place--)
            tried[place] = tried[place - 1];
        tried[place] = token;
    }
    for (size_t i = 0; i < count; i++)
        column[tried[i]] = 1;
    s->tried.count = 0;
    for (int64_t token = 0; token < s->tokens; token++)
        if (column[token] > 0) {
            column[token] = (int64_t)s->tried.count;
            tried[s->tried.count++] = token;
        }
}

/* One frame. */
static int advance(Search *s, const double *emission, int64_t frame) {
    Hypothesis *old = s->old.items;
    size_t n = s->old.count;
    choose_tokens(s, emission);
    double *total = s->total.items;
    if (s->tried.count == 0) {
        for (size_t i = 0; i < n; i++) {
            stay(&old[i], total[i], emission);
            total[i] = log_add_exp(old[i].blank, old[i].label);
        }
        return 1;
    }
    if (!reserve(&s->stayed, n) || !reserve(&s->next_total, n) || !reserve(&s->joined, n * s->tried.count))
        return 0;
    Hypothesis *stayed = s->stayed.items;
    for (size_t i = 0; i < n; i++) {
        stayed[i] = old[i];
        stay(&stayed[i], total[i], emission);
    }
    return join(s, emission, frame) && list_candidates(s, emission) && survive(s, frame);
}

/* The entries of the best hypothesis that are older than the horizon, oldest first; *row: which it is. */
static int list_settled(Search *s, int64_t frame, size_t *row) {
    const Hypothesis *h = s->old.items;
    const Entry *trace = s->trace.items;
    const Node *nodes = s->nodes.items;
    const double *total = s->total.items;
    double best = -INFINITY;
    int64_t entry = PAST;
    for (size_t i = 0; i < s->old.count; i++) {
        double score = total[i] + h[i].fused;
        score += final_score(&s->scorer, h[i].scorer);
        if (i == 0 || score > best) {
            best = score;
            entry = head(&h[i]);
            *row = i;
        }
    }
    while (entry >= 0 && trace[entry].frame >= frame - s->horizon)
        entry = trace[entry].parent;
    s->settled.count = entry < 0 ? 0 : (size_t)nodes[entry].depth;
    if (!reserve(&s->settled, s->settled.count))
        return 0;
    for (int64_t *settled = s->settled.items; entry >= 0; entry = trace[entry].parent)
        settled[nodes[entry].depth - 1] = entry;
    return 1;
}

/* What a head becomes when it agrees with the settled tokens, shorter and longer paths aside; *agrees: whether it does. */
static int64_t settle_head(Search *s, int64_t entry, int *agrees) {
    Entry *trace = s->trace.items;
    const Node *nodes = s->nodes.items;
    int64_t count = (int64_t)s->settled.count, last = ((const int64_t *)s->settled.items)[count - 1];
    *agrees = entry >= 0 && nodes[entry].depth >= count && nodes[entry].agrees;
    if (!*agrees || nodes[entry].depth == count)
        return *agrees ? last : entry;
    int64_t following = nodes[entry].following;
    *agrees = trace[following].frame > trace[last].frame; /* or it has one more token older than the horizon */
    if (*agrees)
        trace[following].parent = last;
    return entry;
}

/* BeamSearch._settle */
static int settle(Search *s, int64_t frame) {
    const Entry *trace = s->trace.items;
    s->nodes.count = s->trace.count;
    if (!reserve(&s->nodes, s->trace.count))
        return 0;
    Node *nodes = s->nodes.items;
    for (size_t e = 0; e < s->trace.count; e++)
        nodes[e].depth = trace[e].parent < 0 ? 1 : nodes[trace[e].parent].depth + 1;
    size_t kept = 0, best = 0;
    if (s->old.count == 0 || !list_settled(s, frame, &best))
        return s->old.count == 0;
    if (s->settled.count == 0)
        return 1;
    const int64_t *settled = s->settled.items;
    for (size_t e = 0; e < s->trace.count; e++) {
        int64_t depth = nodes[e].depth, parent = trace[e].parent;
        nodes[e].agrees = (parent < 0 || nodes[parent].agrees) &&
                          (depth > (int64_t)s->settled.count || trace[e].token == trace[settled[depth - 1]].token);
        nodes[e].following = depth == (int64_t)s->settled.count + 1 ? (int64_t)e : parent < 0 ? PAST : nodes[parent].following;
    }
    Hypothesis *h = s->old.items;
    double *total = s->total.items;
    for (size_t i = 0; i < s->old.count; i++) {
        int blank_agrees, label_agrees;
        h[i].head_blank = settle_head(s, h[i].head_blank, &blank_agrees);
        h[i].head_label = settle_head(s, h[i].head_label, &label_agrees);
        if (blank_agrees || i == best) {
            total[kept] = total[i];
            h[kept++] = h[i];
        }
    }
    s->old.count = kept;
    return 1;
}

/* BeamSearch._compact */
static int compact(Search *s) {
    Hypothesis *h = s->old.items;
    Entry *trace = s->trace.items;
    size_t count = s->trace.count;
    if (!reserve(&s->nodes, count + 1))
        return 0;
    Node *nodes = (Node *)s->nodes.items + 1; /* that of the past stands before the first */
    for (int64_t e = PAST; e < (int64_t)count; e++)
        nodes[e].onward = nodes[e].needed = 0;
    for (size_t i = 0; i < s->old.count; i++) {
        const int64_t ends[] = {h[i].head_blank, h[i].head_label};
        for (int j = 0; j < 2; j++) {
            nodes[ends[j]].onward = 2; /* a path may end here, so the shared part ends here too */
            nodes[ends[j]].needed = 1;
        }
    }
    for (int64_t e = (int64_t)count - 1; e >= 0; e--)
        if (nodes[e].needed) {
            Node *parent = &nodes[trace[e].parent];
            parent->onward++;
            parent->only = e;
            parent->needed = 1;
        }
    for (int64_t e = PAST; nodes[e].onward == 1;) {
        e = nodes[e].only;
        Entry *shared = append(&s->committed);
        if (!shared)
            return 0;
        *shared = trace[e];
        nodes[e].needed = 0;
    }
    nodes[PAST].index = PAST;
    s->trace.count = 0;
    for (size_t e = 0; e < count; e++) {
        nodes[e].index = nodes[e].needed ? (int64_t)s->trace.count : PAST;
        if (nodes[e].needed) {
            trace[e].parent = nodes[trace[e].parent].index;
            trace[s->trace.count++] = trace[e];
        }
    }
    for (size_t i = 0; i < s->old.count; i++) {
        h[i].head_blank = nodes[h[i].head_blank].index;
        h[i].head_label = nodes[h[i].head_label].index;
    }
    return 1;
}

/* Whether the tables have what a scorer's state points at. */
static int scorer_fits(const Scorer *s, const int64_t *state) {
    const Words *w = s->words;
    const Hotwords *h = s->hotwords;
    return (!w || (state[CONTEXT] >= 0 && state[CONTEXT] < w->lm.contexts && state[NODE] >= 0 && state[NODE] < w->nodes)) &&
           (!h || (state[HOTWORD] >= 0 && state[HOTWORD] < h->nodes));
}

/* Whether every entry comes after its parent, so that paths end. */
static int is_trace(const Entry *trace, int64_t count) {
    for (int64_t e = 0; e < count; e++)
        if (trace[e].parent < PAST || trace[e].parent >= e)
            return 0;
    return 1;
}

/* Whether the trace has what a state points at, and the tables. */
static int fits(const Search *s) {
    const Hypothesis *rows = s->old.items;
    int64_t count = (int64_t)s->trace.count;
    if (!is_trace(s->trace.items, count))
        return 0;
    for (size_t i = 0; i < s->old.count; i++) {
        const Hypothesis *h = &rows[i];
        if (h->last < 0 || h->last >= s->tokens || h->head_blank < PAST || h->head_blank >= count ||
            h->head_label < PAST || h->head_label >= count)
            return 0;
        if (!scorer_fits(&s->scorer, h->scorer))
            return 0;
    }
    return 1;
}

/* All frames; 0 where memory is out. */
static int run(Search *s, const double *emissions, int64_t frame, int64_t frames) {
    const Hypothesis *h = s->old.items;
    if (!reserve(&s->column, (size_t)s->tokens) || !reserve(&s->tried, (size_t)s->tokens) || !reserve(&s->total, s->old.count))
        return 0;
    for (size_t i = 0; i < s->old.count; i++)
        ((double *)s->total.items)[i] = log_add_exp(h[i].blank, h[i].label);
    for (int64_t t = 0; t < frames; t++) {
        if (!advance(s, emissions + t * s->tokens, frame + t))
            return 0;
        if ((frame + t + 1) % s->settle_every == 0 && !(settle(s, frame + t + 1) && compact(s)))
            return 0;
    }
    return 1;
}

/* From here on: Python. */
enum { NGRAM_TABLES = 10, WORD_TABLES = 10 + NGRAM_TABLES, HOTWORD_TABLES = 4, STEP_TABLES = 3, SCORE_TABLES = 2 };

/* A scorer, its tables, and the buffers that hold them. */
typedef struct {
    Scorer scorer;
    Words words;
    Hotwords hotwords;
    Py_buffer word_buffers[WORD_TABLES], hotword_buffers[HOTWORD_TABLES];
} Tables;

static void release(Py_buffer *buffers, int count) {
    for (int i = 0; i < count; i++)
        PyBuffer_Release(&buffers[i]);
}

static void release_tables(Tables *t) {
    release(t->word_buffers, WORD_TABLES);
    release(t->hotword_buffers, HOTWORD_TABLES);
}

static Coded coded(const Py_buffer *codes, const Py_buffer *table, int64_t count) {
    return (Coded){codes->buf, table->buf, count ? codes->len / count : 1};
}

static int parse_ngrams(PyObject *tables, Py_buffer *b, Ngrams *lm) {
    long long order;
    if (!PyArg_ParseTuple(tables, "y*y*y*y*y*y*y*y*y*y*L", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5], &b[6], &b[7],
                          &b[8], &b[9], &order))
        return 0;
    int64_t longer = b[1].len / (Py_ssize_t)sizeof(uint16_t);
    lm->first = b[0].buf, lm->low = b[1].buf, lm->high = b[2].len ? b[2].buf : NULL, lm->link = b[9].buf;
    lm->contexts = b[0].len / (Py_ssize_t)sizeof(int32_t) - 1;
    lm->singles = lm->first[lm->contexts] - longer;
    lm->pairs = lm->contexts > 1 ? lm->first[lm->singles + 1] : lm->singles;
    lm->order = order;
    lm->unigram = coded(&b[3], &b[4], lm->singles);
    lm->ngram = coded(&b[5], &b[6], longer);
    lm->backoff = coded(&b[7], &b[8], lm->contexts);
    return 1;
}

static int parse_words(PyObject *tables, Py_buffer *b, Words *w) {
    long long lexicon, ranks;
    PyObject *ngrams;
    if (!PyArg_ParseTuple(tables, "y*y*y*y*y*y*y*y*y*y*OLLddddd", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5], &b[6], &b[7],
                          &b[8], &b[9], &ngrams, &lexicon, &ranks, &w->weight, &w->bonus, &w->penalty, &w->most_ahead,
                          &w->most_completed))
        return 0;
    w->begins = b[0].buf, w->lengths = b[1].buf, w->letters = b[2].buf, w->rank = b[3].buf;
    w->children = b[4].buf, w->letter = b[5].buf, w->first = b[6].buf, w->count = b[7].buf, w->words = b[8].buf;
    w->ahead = b[9].buf;
    w->lexicon = lexicon, w->ranks = ranks;
    w->width = b[2].len / b[1].len;
    w->nodes = b[9].len / (Py_ssize_t)sizeof(double);
    w->outside = w->nodes - 1;
    return parse_ngrams(ngrams, b + WORD_TABLES - NGRAM_TABLES, &w->lm);
}

static int parse_hotwords(PyObject *tables, Py_buffer *b, Hotwords *h) {
    long long codes, tokens;
    if (!PyArg_ParseTuple(tables, "y*y*y*y*LLd", &b[0], &b[1], &b[2], &b[3], &codes, &tokens, &h->most))
        return 0;
    h->next = b[0].buf, h->ahead = b[1].buf, h->earned = b[2].buf, h->token_codes = b[3].buf;
    h->nodes = b[1].len / (Py_ssize_t)sizeof(double);
    h->codes = codes, h->tokens = tokens;
    h->longest = b[3].len / (Py_ssize_t)sizeof(int64_t) / tokens;
    return 1;
}

/* scorer: tables of words or None, tables of hot-words or None, serial. */
static int parse_scorer(PyObject *scorer, Tables *t) {
    PyObject *words, *hotwords;
    long long serial;
    if (!PyArg_ParseTuple(scorer, "OOL", &words, &hotwords, &serial))
        return 0;
    t->scorer.serial = serial;
    if (words != Py_None) {
        if (!parse_words(words, t->word_buffers, &t->words))
            return 0;
        t->scorer.words = &t->words;
    }
    if (hotwords != Py_None) {
        if (!parse_hotwords(hotwords, t->hotword_buffers, &t->hotwords))
            return 0;
        t->scorer.hotwords = &t->hotwords;
    }
    return 1;
}

static int copy_into(List *list, const Py_buffer *buffer) {
    list->count = (size_t)buffer->len / list->size;
    if (!reserve(list, list->count + 1))
        return 0;
    memcpy(list->items, buffer->buf, list->count * list->size);
    return 1;
}

static PyObject *step(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer b[STEP_TABLES] = {{0}};
    Tables tables = {0};
    PyObject *scorer, *result = NULL;
    long long frame, tokens, beam, most_tokens, horizon, settle_every;
    Search s = {0};
    List *lists[] = {&s.old,   &s.stayed,     &s.next,  &s.trace,  &s.committed, &s.candidates, &s.extensions, &s.nodes,
                     &s.total, &s.next_total, &s.tried, &s.column, &s.joined,    &s.lives,      &s.table,      &s.settled};
    const size_t sizes[] = {sizeof(Hypothesis), sizeof(Hypothesis), sizeof(Hypothesis), sizeof(Entry),
                            sizeof(Entry),      sizeof(Candidate),  sizeof(Extension),  sizeof(Node),
                            sizeof(double),     sizeof(double),     sizeof(int64_t),    sizeof(int64_t),
                            sizeof(char),       sizeof(char),       sizeof(int64_t),    sizeof(int64_t)};
    enum { LISTS = sizeof lists / sizeof *lists };
    for (int i = 0; i < LISTS; i++)
        lists[i]->size = sizes[i];
    if (!PyArg_ParseTuple(args, "LL(LdLdLL)Oy*y*y*", &frame, &tokens, &beam, &s.threshold, &most_tokens,
                          &s.token_threshold, &horizon, &settle_every, &scorer, &b[0], &b[1], &b[2]) ||
        !parse_scorer(scorer, &tables))
        goto end;
    s.scorer = tables.scorer;
    s.tokens = tokens, s.beam = beam, s.most_tokens = most_tokens, s.horizon = horizon, s.settle_every = settle_every;
    int done = copy_into(&s.old, &b[1]) && copy_into(&s.trace, &b[2]);
    if (done && !fits(&s)) {
        PyErr_SetString(PyExc_IndexError, "the state belongs to another search");
        goto end;
    }
    if (done) {
        Py_BEGIN_ALLOW_THREADS
        done = run(&s, b[0].buf, frame, b[0].len / (Py_ssize_t)sizeof(double) / tokens);
        Py_END_ALLOW_THREADS
    }
    if (!done)
        PyErr_NoMemory();
    else
        result = Py_BuildValue("y#y#y#", (char *)s.old.items, (Py_ssize_t)(s.old.count * sizeof(Hypothesis)),
                               (char *)s.trace.items, (Py_ssize_t)(s.trace.count * sizeof(Entry)),
                               s.committed.items ? (char *)s.committed.items : "",
                               (Py_ssize_t)(s.committed.count * sizeof(Entry)));
end:
    for (int i = 0; i < LISTS; i++)
        free(lists[i]->items);
    release(b, STEP_TABLES);
    release_tables(&tables);
    return result;
}

static PyObject *final(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer b = {0};
    Tables tables = {0};
    PyObject *scorer, *result = NULL;
    if (!PyArg_ParseTuple(args, "y*O", &b, &scorer) || !parse_scorer(scorer, &tables))
        goto end;
    const Hypothesis *rows = b.buf;
    size_t n = (size_t)b.len / sizeof *rows;
    for (size_t i = 0; i < n; i++)
        if (!scorer_fits(&tables.scorer, rows[i].scorer)) {
            PyErr_SetString(PyExc_IndexError, "the state belongs to another search");
            goto end;
        }
    result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(n * sizeof(double)));
    if (result) {
        double *scores = (double *)(void *)PyBytes_AS_STRING(result);
        for (size_t i = 0; i < n; i++)
            scores[i] = final_score(&tables.scorer, rows[i].scorer);
    }
end:
    PyBuffer_Release(&b);
    release_tables(&tables);
    return result;
}

static PyObject *score(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer b[SCORE_TABLES] = {{0}}, tables[NGRAM_TABLES] = {{0}};
    PyObject *ngrams, *log_probs = NULL, *following = NULL, *result = NULL;
    Ngrams lm;
    if (!PyArg_ParseTuple(args, "Oy*y*", &ngrams, &b[0], &b[1]) || !parse_ngrams(ngrams, tables, &lm))
        goto end;
    const int64_t *context = b[0].buf, *word = b[1].buf;
    Py_ssize_t n = b[0].len / (Py_ssize_t)sizeof(int64_t);
    if (b[1].len != b[0].len) {
        PyErr_SetString(PyExc_ValueError, "contexts and words differ in number");
        goto end;
    }
    for (Py_ssize_t i = 0; i < n; i++)
        if (context[i] < 0 || context[i] >= lm.contexts || word[i] < 0 || word[i] >= lm.singles) {
            PyErr_SetString(PyExc_IndexError, "a context or word belongs to another language model");
            goto end;
        }
    log_probs = PyBytes_FromStringAndSize(NULL, n * (Py_ssize_t)sizeof(float));
    following = PyBytes_FromStringAndSize(NULL, n * (Py_ssize_t)sizeof(int64_t));
    if (log_probs && following) {
        float *scores = (float *)(void *)PyBytes_AS_STRING(log_probs);
        int64_t *contexts = (int64_t *)(void *)PyBytes_AS_STRING(following);
        for (Py_ssize_t i = 0; i < n; i++)
            scores[i] = ngram_score(&lm, context[i], word[i], &contexts[i]);
        result = PyTuple_Pack(2, log_probs, following);
    }
end:
    Py_XDECREF(log_probs);
    Py_XDECREF(following);
    release(b, SCORE_TABLES);
    release(tables, NGRAM_TABLES);
    return result;
}

/* A row and its score. */
typedef struct {
    double score;
    int64_t row;
} Ranked;

/* The likeliest prefixes of one key: one that ends in a boundary, and one that does not; row -1 where there is none. */
typedef struct {
    uint64_t key;
    Ranked best[2];
} Pair;

static int compare_ranked(const void *a, const void *b) {
    const Ranked *x = a, *y = b;
    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return x->row < y->row ? -1 : 1;
}

/* Makes one of the best hypothesis of each key that ends in a boundary and the best that does not; `ends`: of tokens. */
static size_t merge(const Scorer *scorer, const Hypothesis *rows, size_t n, const char *ends, int64_t *slots, size_t size,
                    Pair *pairs, Ranked *ranked) {
    size_t count = 0;
    memset(slots, -1, size * sizeof *slots);
    for (size_t i = 0; i < n; i++) {
        const Hypothesis *h = &rows[i];
        double score = log_add_exp(h->blank, h->label) + h->fused + final_score(scorer, h->scorer);
        int end = ends && ends[h->last];
        uint64_t key = end ? h->parent_key : h->key;
        size_t at = key & (size - 1);
        while (slots[at] >= 0 && pairs[slots[at]].key != key)
            at = (at + 1) & (size - 1);
        if (slots[at] < 0) {
            slots[at] = (int64_t)count;
            pairs[count++] = (Pair){key, {{0, -1}, {0, -1}}};
        }
        Ranked *best = &pairs[slots[at]].best[end];
        if (best->row < 0 || score > best->score)
            *best = (Ranked){score, (int64_t)i};
    }
    for (size_t g = 0; g < count; g++) {
        const Ranked *one = &pairs[g].best[0], *other = &pairs[g].best[1];
        if (one->row < 0 || (other->row >= 0 && compare_ranked(other, one) < 0)) {
            const Ranked *less = one;
            one = other;
            other = less;
        }
        ranked[g] = *one;
        if (other->row >= 0)
            ranked[g].score = log_add_exp(one->score, other->score);
    }
    return count;
}

static PyObject *merged(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer b[2] = {{0}};
    Tables tables = {0};
    PyObject *scorer, *result = NULL;
    int all;
    Ranked *ranked = NULL;
    Pair *pairs = NULL;
    int64_t *slots = NULL;
    if (!PyArg_ParseTuple(args, "y*y*Op", &b[0], &b[1], &scorer, &all) || !parse_scorer(scorer, &tables))
        goto end;
    const Hypothesis *rows = b[0].buf;
    size_t n = (size_t)b[0].len / sizeof *rows, size = 16, count;
    for (size_t i = 0; i < n; i++)
        if (!scorer_fits(&tables.scorer, rows[i].scorer) || rows[i].last < 0 || (b[1].len && rows[i].last >= b[1].len)) {
            PyErr_SetString(PyExc_IndexError, "the state belongs to another search");
            goto end;
        }
    while (size < 2 * n)
        size *= 2;
    ranked = malloc((n + 1) * sizeof *ranked);
    pairs = malloc((n + 1) * sizeof *pairs);
    slots = malloc(size * sizeof *slots);
    if (!ranked || !pairs || !slots) {
        PyErr_NoMemory();
        goto end;
    }
    count = merge(&tables.scorer, rows, n, b[1].len ? b[1].buf : NULL, slots, size, pairs, ranked);
    if (all)
        qsort(ranked, count, sizeof *ranked, compare_ranked);
    for (size_t g = 1; g < count && !all; g++)
        if (compare_ranked(&ranked[g], &ranked[0]) < 0)
            ranked[0] = ranked[g];
    result = PyBytes_FromStringAndSize((const char *)ranked, (Py_ssize_t)((all || !count ? count : 1) * sizeof *ranked));
end:
    free(ranked), free(pairs), free(slots);
    release(b, 2);
    release_tables(&tables);
    return result;
}

static PyObject *path(PyObject *module, PyObject *args) {
    (void)module;
    enum { TOKEN, FRAME, LOG_PROB, FUSED_UP, COLUMNS };
    Py_buffer b[3] = {{0}};
    Tables tables = {0};
    long long row;
    PyObject *scorer, *result = NULL;
    if (!PyArg_ParseTuple(args, "y*y*y*LO", &b[0], &b[1], &b[2], &row, &scorer) || !parse_scorer(scorer, &tables))
        goto end;
    const Entry *trace = b[0].buf, *committed = b[1].buf;
    const Hypothesis *rows = b[2].buf;
    int64_t count = b[0].len / (Py_ssize_t)sizeof *trace, settled = b[1].len / (Py_ssize_t)sizeof *committed;
    int64_t length = settled, last = row < 0 || row >= b[2].len / (Py_ssize_t)sizeof *rows ? count : head(&rows[row]);
    if (last < PAST || last >= count || !is_trace(trace, count) || !scorer_fits(&tables.scorer, rows[row].scorer)) {
        PyErr_SetString(PyExc_IndexError, "an entry of the trace is missing, or the state belongs to another search");
        goto end;
    }
    for (int64_t e = last; e >= 0; e = trace[e].parent)
        length++;
    result = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)(COLUMNS * length * (int64_t)sizeof(int64_t)));
    if (!result)
        goto end;
    int64_t *tokens = (int64_t *)(void *)PyByteArray_AS_STRING(result), *frames = tokens + length;
    double *log_probs = (double *)(tokens + LOG_PROB * length), *fused = (double *)(tokens + FUSED_UP * length);
    for (int64_t i = length - 1, e = last; i >= 0; i--) {
        const Entry *entry = e >= 0 ? &trace[e] : &committed[i];
        tokens[i] = entry->token, frames[i] = entry->frame, log_probs[i] = entry->log_prob, fused[i] = entry->fused;
        e = e >= 0 ? entry->parent : PAST;
    }
    if (length)
        fused[length - 1] += final_score(&tables.scorer, rows[row].scorer);
end:
    release(b, 3);
    release_tables(&tables);
    return result;
}

static PyObject *oldest(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer b = {0};
    if (!PyArg_ParseTuple(args, "y*", &b))
        return NULL;
    const Hypothesis *rows = b.buf;
    int64_t n = b.len / (Py_ssize_t)sizeof *rows, found = n ? head(&rows[0]) : PAST;
    for (int64_t i = 1; i < n; i++)
        found = head(&rows[i]) < found ? head(&rows[i]) : found;
    PyBuffer_Release(&b);
    return PyLong_FromLongLong(found);
}

static PyObject *recent(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer b[3] = {{0}};
    long long since;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "y*y*y*L", &b[0], &b[1], &b[2], &since))
        return NULL;
    const Entry *trace = b[0].buf, *committed = b[1].buf;
    const int64_t *heads = b[2].buf;
    int64_t count = b[0].len / (Py_ssize_t)sizeof *trace, settled = b[1].len / (Py_ssize_t)sizeof *committed;
    int64_t n = b[2].len / (Py_ssize_t)sizeof *heads, longest = 0, old = 0;
    int whole_trace = is_trace(trace, count);
    for (int64_t i = 0; i < n; i++) {
        int64_t length = 0;
        if (!whole_trace || heads[i] >= count) {
            PyErr_SetString(PyExc_IndexError, "an entry of the trace is missing");
            goto end;
        }
        for (int64_t e = heads[i]; e >= 0; e = trace[e].frame >= since ? trace[e].parent : PAST)
            length++;
        longest = length > longest ? length : longest;
    }
    while (old < settled && committed[settled - 1 - old].frame >= since)
        old++;
    old += old < settled; /* the one before them */
    int64_t width = old + longest, size = n * width;
    result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(2 * size * (int64_t)sizeof(int64_t)));
    if (!result)
        goto end;
    int64_t *tokens = (int64_t *)(void *)PyBytes_AS_STRING(result), *frames = tokens + size;
    memset(tokens, -1, (size_t)(2 * size) * sizeof *tokens);
    for (int64_t i = 0; i < n; i++) {
        int64_t e = heads[i], from_past = 1;
        for (int64_t at = (i + 1) * width - 1; e >= 0; at--) {
            tokens[at] = trace[e].token, frames[at] = trace[e].frame;
            from_past = trace[e].frame >= since;
            e = from_past ? trace[e].parent : PAST;
        }
        for (int64_t j = 0; j < old && from_past; j++) {
            tokens[i * width + j] = committed[settled - old + j].token;
            frames[i * width + j] = committed[settled - old + j].frame;
        }
    }
end:
    release(b, 3);
    return result;
}

static PyObject *stable(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer b[2] = {{0}};
    PyObject *result = NULL;
    int64_t *shared = NULL;
    if (!PyArg_ParseTuple(args, "y*y*", &b[0], &b[1]))
        return NULL;
    const Entry *trace = b[0].buf;
    const Hypothesis *rows = b[1].buf;
    int64_t count = b[0].len / (Py_ssize_t)sizeof *trace, n = b[1].len / (Py_ssize_t)sizeof *rows, agreed = -1;
    shared = malloc(((size_t)count + 1) * sizeof *shared);
    if (!shared) {
        PyErr_NoMemory();
        goto end;
    }
    int whole = is_trace(trace, count);
    for (int64_t i = 0; i < n; i++)
        if (!whole || head(&rows[i]) >= count) {
            PyErr_SetString(PyExc_IndexError, "an entry of the trace is missing");
            goto end;
        }
    for (int64_t i = 0; i < n; i++) {
        int64_t length = 0, place;
        for (int64_t e = head(&rows[i]); e >= 0; e = trace[e].parent)
            length++;
        place = length;
        agreed = agreed < 0 || length < agreed ? length : agreed;
        for (int64_t e = head(&rows[i]); e >= 0; e = trace[e].parent) {
            place--;
            if (i == 0)
                shared[place] = trace[e].token;
            else if (place < agreed && trace[e].token != shared[place])
                agreed = place;
        }
    }
    result = PyLong_FromLongLong(agreed < 0 ? 0 : agreed);
end:
    free(shared);
    release(b, 2);
    return result;
}

/* confidence._mixed */
static uint64_t mixed(int64_t token, int64_t place) {
    uint64_t z = (((uint64_t)token << 16) + (uint64_t)place + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static PyObject *words(PyObject *module, PyObject *args) {
    (void)module;
    enum { KEY, FIRST, LAST, ROW, COLUMNS };
    Py_buffer b[3] = {{0}};
    long long width, boundary, since;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "y*y*Ly*LL", &b[0], &b[1], &width, &b[2], &boundary, &since))
        return NULL;
    const int64_t *tokens = b[0].buf, *frames = b[1].buf;
    const char *begins = b[2].buf;
    int64_t size = b[0].len / (Py_ssize_t)sizeof *tokens, count = 0, *found = malloc(((size_t)size + 1) * COLUMNS * sizeof *found);
    if (!found) {
        PyErr_NoMemory();
        goto end;
    }
    if (b[1].len != b[0].len || (size && (width < 1 || size % width))) {
        PyErr_SetString(PyExc_ValueError, "tokens and frames differ in shape");
        goto end;
    }
    int after_any = 0, after_inside = 0, open = 0;
    int64_t place = 0;
    for (int64_t i = 0; i < size; i++) {
        int64_t token = tokens[i], *word = found + COLUMNS * (count - 1);
        if (i % width == 0)
            after_any = after_inside = open = 0;
        if (token < 0)
            continue;
        int other = token >= b[2].len, inside = !other && token != boundary, begin = inside && begins[token];
        if (inside && (begin || (!after_inside && (after_any || frames[i] >= since)))) {
            word += COLUMNS;
            word[KEY] = 0, word[FIRST] = frames[i], word[LAST] = -1, word[ROW] = i / width;
            open = 1, place = 0, count++;
        }
        if (open && (inside || other))
            word[KEY] = (int64_t)((uint64_t)word[KEY] + mixed(token, place++));
        if (open && inside && frames[i] > word[LAST])
            word[LAST] = frames[i];
        after_any = 1, after_inside = inside;
    }
    result = PyBytes_FromStringAndSize((const char *)found, (Py_ssize_t)(count * COLUMNS * (int64_t)sizeof *found));
end:
    free(found);
    release(b, 3);
    return result;
}

/* As in confidence.py: the kinds of evidence, and how far a word reaches. */
enum { SHARE, SHARE_AROUND, LANGUAGE, LANGUAGE_AROUND, FIT, WORST, CLARITY, HASTE, LONG, KINDS };
enum { MARGIN = 4, REACH = 4, SHORT = 3 };

/* confidence._around, of one kind; fading: what a word counts for those beside it, by how far they are apart. */
static void spread(const double *values, double *around, int64_t words, const double *fading) {
    for (int64_t i = 0; i < words; i++) {
        double total = 0, count = 0;
        for (int64_t j = i < REACH ? 0 : i - REACH; j < words && j <= i + REACH; j++)
            if (isfinite(values[j])) {
                double weight = fading[j < i ? i - j : j - i];
                total += weight * values[j];
                count += weight;
            }
        around[i] = count > 0 ? total / count : NAN;
    }
}

/* A path and the emissions that it explains. */
typedef struct {
    const float *emissions, *clarity;
    const int64_t *tokens, *frames;
    const double *log_probs, *fused;
    int64_t length, vocabulary, count, boundary;
} Explained;

/* Up to each frame, the log-probability of the path's alignment: a token at its frame, else a blank or the token again. */
static void align(const Explained *p, double *total) {
    int64_t current = -1;
    total[0] = 0;
    for (int64_t t = 0; t < p->length; t++) {
        const float *emission = p->emissions + t * p->vocabulary;
        double found = emission[BLANK];
        while (current + 1 < p->count && p->frames[current + 1] <= t)
            current++;
        if (current >= 0) {
            int64_t token = p->tokens[current] < p->vocabulary ? p->tokens[current] : p->boundary;
            found = p->frames[current] == t ? emission[token] : log_add_exp(found, emission[token]);
        }
        total[t + 1] = total[t] + found;
    }
}

/* All that needs no other words, of one whose tokens are those from `begin` to `end`; a column of `rows`. */
static void judge(const Explained *p, const double *total, int64_t begin, int64_t end, double *rows, int64_t words) {
    int64_t first = p->frames[begin], last = p->frames[end - 1];
    int64_t low = begin > 0 ? p->frames[begin - 1] : first > MARGIN ? first - MARGIN : 0;
    int64_t high = end < p->count ? p->frames[end] : last + MARGIN < p->length ? last + MARGIN : p->length - 1;
    double worst = p->log_probs[begin], clarity = p->clarity[low];
    for (int64_t i = begin + 1; i < end; i++)
        worst = p->log_probs[i] < worst ? p->log_probs[i] : worst;
    for (int64_t t = low + 1; t <= high; t++)
        clarity = p->clarity[t] < clarity ? p->clarity[t] : clarity;
    rows[LANGUAGE * words] = p->fused[end < p->count ? end : p->count - 1] - (begin > 0 ? p->fused[begin - 1] : 0);
    rows[FIT * words] = (total[high + 1] - total[low]) / (double)(high + 1 - low);
    rows[WORST * words] = worst;
    rows[CLARITY * words] = clarity;
    rows[HASTE * words] = -(double)(last + 1 - first) / (double)(end - begin);
    rows[LONG * words] = end - begin > SHORT ? (double)(end - begin - SHORT) : 0;
}

static int is_explained(const Explained *p, const int64_t *edges, int64_t words) {
    for (int64_t i = 0; i < p->count; i++)
        if (p->frames[i] < (i ? p->frames[i - 1] : 0) || p->frames[i] >= p->length || p->tokens[i] < 0 ||
            (p->tokens[i] >= p->vocabulary && (p->boundary < 0 || p->boundary >= p->vocabulary)))
            return 0;
    for (int64_t w = 0; w < words; w++)
        if (edges[2 * w] < 0 || edges[2 * w] >= edges[2 * w + 1] || edges[2 * w + 1] > p->count)
            return 0;
    return 1;
}

static PyObject *evidence(PyObject *module, PyObject *args) {
    (void)module;
    enum { EMISSIONS, CLARITIES, TOKENS, FRAMES, LOG_PROBS, FUSED, EDGES, SHARES, FADINGS, ARRAYS };
    Py_buffer b[ARRAYS] = {{0}};
    PyObject *result = NULL;
    long long boundary;
    double *total = NULL;
    if (!PyArg_ParseTuple(args, "Ly*y*y*y*y*y*y*y*y*", &boundary, &b[0], &b[1], &b[2], &b[3], &b[4], &b[5], &b[6], &b[7],
                          &b[8]))
        return NULL;
    const int64_t *edges = b[EDGES].buf;
    int64_t words = b[SHARES].len / (Py_ssize_t)sizeof(double), length = b[CLARITIES].len / (Py_ssize_t)sizeof(float);
    int64_t count = b[TOKENS].len / (Py_ssize_t)sizeof(int64_t);
    int64_t vocabulary = length ? b[EMISSIONS].len / (Py_ssize_t)sizeof(float) / length : 0;
    Explained p = {b[EMISSIONS].buf, b[CLARITIES].buf, b[TOKENS].buf, b[FRAMES].buf, b[LOG_PROBS].buf, b[FUSED].buf,
                   length,           vocabulary,       count,         boundary};
    int paired = b[FRAMES].len == b[TOKENS].len && b[LOG_PROBS].len == b[TOKENS].len && b[FUSED].len == b[TOKENS].len &&
                 b[EDGES].len == 2 * b[SHARES].len && b[FADINGS].len == (REACH + 1) * (Py_ssize_t)sizeof(double);
    if (!paired || !vocabulary || !is_explained(&p, edges, words)) {
        PyErr_SetString(PyExc_ValueError, "path, words and emissions do not belong together");
        goto end;
    }
    total = malloc(((size_t)length + 1) * sizeof *total);
    result = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)(KINDS * words * (int64_t)sizeof(double)));
    if (!total || !result) {
        Py_CLEAR(result);
        PyErr_NoMemory();
        goto end;
    }
    double *rows = (double *)(void *)PyByteArray_AS_STRING(result);
    align(&p, total);
    for (int64_t w = 0; w < words; w++)
        judge(&p, total, edges[2 * w], edges[2 * w + 1], rows + w, words);
    memcpy(rows + SHARE * words, b[SHARES].buf, (size_t)b[SHARES].len);
    spread(rows + SHARE * words, rows + SHARE_AROUND * words, words, b[FADINGS].buf);
    spread(rows + LANGUAGE * words, rows + LANGUAGE_AROUND * words, words, b[FADINGS].buf);
end:
    free(total);
    release(b, ARRAYS);
    return result;
}

static PyMethodDef methods[] = {
    {"evidence", evidence, METH_VARARGS,
     "evidence(boundary, log_probs, clarity, tokens, frames, token_log_probs, fused, edges, share, fading)\n\n"
     "What confidence._evidence gives, as bytes; edges: where the tokens of each word begin and end."},
    {"final", final, METH_VARARGS,
     "final(hypotheses, scorer)\n\nWhat Scorer.final gives for each, as bytes."},
    {"merged", merged, METH_VARARGS,
     "merged(hypotheses, ends, scorer, all)\n\nScores and rows as BeamSearch._merged gives them, as bytes; all, or the best."},
    {"oldest", oldest, METH_VARARGS,
     "oldest(hypotheses)\n\nThe first entry of the trace in which one of them ends, -1 for the past."},
    {"path", path, METH_VARARGS,
     "path(trace, committed, hypotheses, row, scorer)\n\n"
     "Tokens of a hypothesis, their frames, log-probabilities and what the scorer has added, as bytes, 8 each."},
    {"recent", recent, METH_VARARGS,
     "recent(trace, committed, heads, since)\n\nTokens of each path from a frame on, then frames, as bytes; -1 in gaps."},
    {"score", score, METH_VARARGS,
     "score(ngrams, contexts, words)\n\nWhat NgramModel.score gives, as bytes."},
    {"step", step, METH_VARARGS,
     "step(frame, tokens, limits, scorer, emissions, hypotheses, trace)\n\n"
     "Hypotheses and trace after some frames, and what was committed, as bytes; limits as Kernel has them."},
    {"stable", stable, METH_VARARGS,
     "stable(trace, hypotheses)\n\nHow many tokens of the trace all hypotheses begin with."},
    {"words", words, METH_VARARGS,
     "words(tokens, frames, columns, begins, boundary, since)\n\n"
     "Key, first, last and row of each word, as Judge._words gives them, as bytes."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_kernel", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModule_Create(&definition); }
