/*
 * Frames of the prefix beam search: what BeamSearch._advance and its scorers do in NumPy, with the same operations in the
 * same order, so that the results are the same to the last bit. kernel.py hands over the arrays.
 *
 * It is quicker for three reasons: no intermediate arrays, a hash table where NumPy compares every prefix with every
 * other, and a bar that rises as candidates are found, under which none is kept.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { BLANK = 0, UNKNOWN = 0, NO_CONTEXT = 0, ROOT = 0, SPACE = 0, NO_CODE = -1 };
enum { HOTWORD, CONTEXT, NODE, FIELDS }; /* of a scorer's state */

static const double LN_2 = 0.693147180559945309417232121458;

/* Laid out as in kernel.py. */
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

/* Numbers with codes of 1, 2 or 4 bytes. */
typedef struct {
    const void *codes;
    const float *table;
    Py_ssize_t bytes;
} Coded;

/* Tables of NgramModel. */
typedef struct {
    const int32_t *first;  /* n-gram of each context, then the number of all */
    const uint16_t *low;   /* bytes of the last word of each n-gram of two words and more */
    const uint8_t *high;   /* the third byte, or NULL */
    const int32_t *link;   /* of each context of three words and more */
    Coded unigram, ngram, backoff;
    int64_t singles, pairs, contexts, order;
} Ngrams;

/* Tables of WordScorer and LetterTree. */
typedef struct {
    const char *begins;        /* of each token */
    const int64_t *lengths;    /* of each token */
    const int64_t *letters;    /* shape = (tokens, width) */
    const int64_t *rank;       /* of each token */
    const int64_t *children;   /* the first child of each node; those of one node follow each other */
    const uint8_t *letter;     /* that leads to each node */
    const int64_t *first;      /* index into `words` of each node */
    const int64_t *count;      /* words that each node completes */
    const int64_t *words;
    const double *ahead;       /* of each node */
    Ngrams lm;
    int64_t width, nodes, outside, lexicon;
    double weight, bonus, penalty;
} Words;

/* Tables of Hotwords. */
typedef struct {
    const int32_t *next;   /* shape = (nodes, codes) */
    const double *ahead;   /* of each node */
    const double *earned;  /* of each node */
    const int64_t *token_codes; /* shape = (longest, tokens) */
    int64_t nodes, codes, longest, tokens;
} Hotwords;

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

typedef struct {
    void *items;
    size_t count, room, size;
} List;

typedef struct {
    const Words *words;
    const Hotwords *hotwords;
    int64_t tokens, beam;
    double threshold;
    List old, stayed, next; /* of Hypothesis */
    List trace;             /* of Entry */
    List candidates, extensions;
    List total, tried, column, joined, table;
    int64_t trace_size;
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

static float value(const Coded *coded, int64_t i) {
    if (coded->bytes == 1)
        return coded->table[((const uint8_t *)coded->codes)[i]];
    if (coded->bytes == 2)
        return coded->table[((const uint16_t *)coded->codes)[i]];
    return coded->table[((const uint32_t *)coded->codes)[i]];
}

/* The last word of an n-gram of two words and more. */
static int64_t last_word(const Ngrams *lm, int64_t ngram) {
    int64_t i = ngram - lm->singles;
    return lm->low[i] | (lm->high ? (int64_t)lm->high[i] << 16 : 0);
}

/* The n-gram that continues a context with a word, or -1; NgramModel._find */
static int64_t find_ngram(const Ngrams *lm, int64_t context, int64_t word) {
    if (context == NO_CONTEXT)
        return -1;
    int64_t low = lm->first[context], end = lm->first[context + 1], high = end;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (last_word(lm, middle) < word)
            low = middle + 1;
        else
            high = middle;
    }
    return low < end && last_word(lm, low) == word ? low : -1;
}

/* NgramModel._shorter */
static int64_t shorter(const Ngrams *lm, int64_t context) {
    if (context <= lm->singles)
        return NO_CONTEXT;
    if (context <= lm->pairs)
        return last_word(lm, context - 1) + 1;
    return lm->link[context - 1 - lm->pairs];
}

/* NgramModel.score */
static float ngram_score(const Ngrams *lm, int64_t context, int64_t word, int64_t *following) {
    float log_prob = 0;
    int scored = 0;
    *following = 0;
    for (int64_t i = 0; i < lm->order - 1; i++) {
        int64_t found = find_ngram(lm, context, word);
        if (!scored)
            log_prob += found >= 0 ? value(&lm->ngram, found - lm->singles) : value(&lm->backoff, context);
        if (found >= 0 && *following == 0 && found + 1 < lm->contexts)
            *following = found + 1;
        scored |= found >= 0;
        if (scored && *following > 0)
            break;
        context = shorter(lm, context);
    }
    if (!scored)
        log_prob += value(&lm->unigram, word);
    if (*following == 0)
        *following = lm->order > 1 ? word + 1 : NO_CONTEXT;
    return log_prob;
}

/* LetterTree.child */
static int64_t child(const Words *w, int64_t node, int64_t letter) {
    for (int64_t next = w->children[node]; next < w->children[node + 1]; next++)
        if (w->letter[next] == letter)
            return next;
    return w->outside;
}

/* WordScorer._completed, of the word of this rank. */
static double complete(const Words *w, int64_t context, int64_t node, int64_t rank, int64_t *following) {
    int64_t word = rank < w->count[node] ? w->words[w->first[node] + rank] : UNKNOWN;
    double score = w->weight * (double)ngram_score(&w->lm, context, word, following) + w->bonus;
    if (word == UNKNOWN)
        score -= w->penalty;
    score -= w->ahead[node];
    return rank > 0 && word == UNKNOWN ? -INFINITY : score;
}

/* WordScorer.extend */
static double extend_words(const Words *w, int64_t *state, int64_t token) {
    int64_t node = state[NODE];
    double score = -w->ahead[node];
    if (w->begins[token]) {
        if (node != ROOT) {
            int64_t following;
            score = complete(w, state[CONTEXT], node, w->rank[token], &following);
            state[CONTEXT] = following;
        } else if (w->lexicon) {
            score = -INFINITY;
        }
        node = ROOT;
    }
    for (int64_t i = 0; i < w->lengths[token]; i++)
        node = child(w, node, w->letters[token * w->width + i]);
    state[NODE] = node;
    return score + w->ahead[node];
}

/* WordScorer.final, of one state; ranks: words that sound alike which tokens tell apart. */
static double final_words(const Words *w, int64_t context, int64_t node, int64_t ranks) {
    int64_t following, choices = w->count[node] < ranks ? w->count[node] : ranks;
    double best = 0.0;
    for (int64_t rank = 0; node != ROOT && (rank == 0 || rank < choices); rank++) {
        double score = complete(w, context, node, rank, &following);
        best = rank == 0 || score > best ? score : best;
    }
    return best;
}

/* Whether the words forbid a token: a boundary after nothing, or one of more words than sound alike here. */
static int is_forbidden(const Words *w, const int64_t *state, int64_t token) {
    if (!w->begins[token])
        return 0;
    return state[NODE] == ROOT ? w->lexicon != 0 : w->rank[token] > 0 && w->rank[token] >= w->count[state[NODE]];
}

/* HotwordScorer._follow */
static double extend_hotwords(const Hotwords *h, int64_t *state, int64_t token) {
    int64_t node = state[HOTWORD];
    double score = -h->ahead[node];
    for (int64_t i = 0; i < h->longest; i++) {
        int64_t code = h->token_codes[i * h->tokens + token];
        score += code == SPACE ? h->earned[node] : 0.0;
        if (code != NO_CODE)
            node = h->next[node * h->codes + code];
    }
    state[HOTWORD] = node;
    return score + h->ahead[node];
}

static double extend(const Search *s, int64_t *state, int64_t token) {
    double score = s->words ? extend_words(s->words, state, token) : 0.0;
    return s->hotwords ? extend_hotwords(s->hotwords, state, token) + score : score;
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

static int compare(const void *a, const void *b) { return before(b, a) - before(a, b); }

/* Brings the best `wanted` of the candidates to the front, in any order (Hoare's quickselect). */
static void select_best(Candidate *c, size_t count, size_t wanted) {
    size_t begin = 0, end = count;
    while (wanted > begin && wanted < end) {
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
            stayed[i].head_label = s->trace_size++;
        }
    }
    return 1;
}

/* Lists the best candidates, best first: hypotheses that stay as they are, and extensions. */
static int list_candidates(Search *s, const double *emission) {
    const Hypothesis *old = s->old.items, *stayed = s->stayed.items;
    const double *total = s->total.items;
    const int64_t *tried = s->tried.items;
    const char *joined = s->joined.items;
    size_t n = s->old.count, k = s->tried.count, beam = (size_t)s->beam;
    double best = -INFINITY, bar;
    s->candidates.count = s->extensions.count = 0;
    if (!reserve(&s->candidates, n))
        return 0;
    Candidate *candidates = s->candidates.items;
    for (size_t i = 0; i < n; i++) {
        double score = log_add_exp(stayed[i].blank, stayed[i].label) + stayed[i].fused;
        candidates[i] = (Candidate){score, (int64_t)i, -1};
        best = score > best ? score : best;
    }
    s->candidates.count = n;
    bar = best - s->threshold;
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < k; j++) {
            int64_t token = tried[j];
            double acoustic = (token == old[i].last ? old[i].blank : total[i]) + emission[token];
            if (joined[i * k + j] || !(acoustic > -INFINITY))
                continue;
            if (s->words && bar > -INFINITY && is_forbidden(s->words, old[i].scorer, token))
                continue; /* only saves time: its score is below any bar */
            Extension found = {(int64_t)i, token, acoustic, old[i].fused, emission[token], {0}};
            memcpy(found.scorer, old[i].scorer, sizeof found.scorer);
            if (s->words || s->hotwords)
                found.fused += extend(s, found.scorer, token);
            double score = acoustic + found.fused;
            if (!(score >= bar))
                continue;
            Extension *extension = append(&s->extensions);
            Candidate *candidate = append(&s->candidates);
            if (!extension || !candidate)
                return 0;
            *extension = found;
            *candidate = (Candidate){score, (int64_t)(n + i * k + j), (int64_t)s->extensions.count - 1};
            if (score > best) {
                best = score;
                bar = best - s->threshold > bar ? best - s->threshold : bar;
            }
            if (s->candidates.count >= 2 * beam) { /* only so many of these can live on */
                candidates = s->candidates.items;
                select_best(candidates, s->candidates.count, beam);
                s->candidates.count = beam;
                for (size_t c = 1; c < beam; c++)
                    if (before(&candidates[0], &candidates[c])) {
                        Candidate worse = candidates[c];
                        candidates[c] = candidates[0];
                        candidates[0] = worse;
                    }
                bar = candidates[0].score > bar ? candidates[0].score : bar;
            }
        }
    }
    size_t kept = 0;
    candidates = s->candidates.items;
    for (size_t i = 0; i < s->candidates.count; i++)
        if (candidates[i].score >= best - s->threshold)
            candidates[kept++] = candidates[i];
    if (kept > beam)
        select_best(candidates, kept, beam);
    s->candidates.count = kept > beam ? beam : kept;
    qsort(candidates, s->candidates.count, sizeof *candidates, compare);
    return 1;
}

/* The hypotheses of the next frame: those that stay, then the new ones, each with an entry in the trace. */
static int survive(Search *s, int64_t frame) {
    const Hypothesis *old = s->old.items, *stayed = s->stayed.items;
    const Extension *extensions = s->extensions.items;
    const Candidate *candidates = s->candidates.items;
    size_t count = s->candidates.count;
    if (!reserve(&s->next, count))
        return 0;
    Hypothesis *next = s->next.items;
    for (size_t i = 0; i < count; i++)
        if (candidates[i].extension < 0)
            *next++ = stayed[candidates[i].position];
    for (size_t i = 0; i < count; i++) {
        if (candidates[i].extension < 0)
            continue;
        const Extension *by = &extensions[candidates[i].extension];
        const Hypothesis *from = &old[by->row];
        int repeats = from->last == by->token;
        Entry *entry = append(&s->trace);
        if (!entry)
            return 0;
        *entry = (Entry){repeats ? from->head_blank : head(from), by->token, frame, by->log_prob, by->fused};
        *next = (Hypothesis){
            .key = extend_key(from->key, by->token),
            .parent_key = from->key,
            .last = by->token,
            .blank = -INFINITY,
            .label = by->acoustic,
            .fused = by->fused,
            .best_blank = -INFINITY,
            .best_label = (repeats ? from->best_blank : likeliest(from)) + by->log_prob,
            .head_blank = s->trace_size,
            .head_label = s->trace_size,
        };
        memcpy(next->scorer, by->scorer, sizeof next->scorer);
        next++;
        s->trace_size++;
    }
    s->next.count = count;
    List last = s->old;
    s->old = s->next;
    s->next = last;
    return 1;
}

/* One frame; tried: of each token, whether hypotheses may take it. */
static int advance(Search *s, const double *emission, const char *tried, int64_t frame) {
    Hypothesis *old = s->old.items;
    size_t n = s->old.count;
    int64_t *column = s->column.items, *tokens = s->tried.items;
    s->tried.count = 0;
    for (int64_t token = 0; token < s->tokens; token++) {
        column[token] = tried[token] ? (int64_t)s->tried.count : -1;
        if (tried[token])
            tokens[s->tried.count++] = token;
    }
    if (s->tried.count == 0) {
        for (size_t i = 0; i < n; i++)
            stay(&old[i], log_add_exp(old[i].blank, old[i].label), emission);
        return 1;
    }
    if (!reserve(&s->stayed, n) || !reserve(&s->total, n) || !reserve(&s->joined, n * s->tried.count))
        return 0;
    Hypothesis *stayed = s->stayed.items;
    double *total = s->total.items;
    for (size_t i = 0; i < n; i++) {
        total[i] = log_add_exp(old[i].blank, old[i].label);
        stayed[i] = old[i];
        stay(&stayed[i], total[i], emission);
    }
    return join(s, emission, frame) && list_candidates(s, emission) && survive(s, frame);
}

/* Whether a hypothesis can index the tables. */
static int fits(const Search *s, const Hypothesis *h) {
    const Words *w = s->words;
    const Hotwords *hot = s->hotwords;
    return h->last >= 0 && h->last < s->tokens &&
           (!w || (h->scorer[CONTEXT] >= 0 && h->scorer[CONTEXT] < w->lm.contexts && h->scorer[NODE] >= 0 &&
                   h->scorer[NODE] < w->nodes)) &&
           (!hot || (h->scorer[HOTWORD] >= 0 && h->scorer[HOTWORD] < hot->nodes));
}

enum { NGRAM_TABLES = 10, WORD_TABLES = 10 + NGRAM_TABLES, HOTWORD_TABLES = 4, BLOCK_TABLES = 3, SCORE_TABLES = 2 };

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
    long long lexicon;
    PyObject *ngrams;
    if (!PyArg_ParseTuple(tables, "y*y*y*y*y*y*y*y*y*y*OLddd", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5], &b[6], &b[7],
                          &b[8], &b[9], &ngrams, &lexicon, &w->weight, &w->bonus, &w->penalty))
        return 0;
    w->begins = b[0].buf, w->lengths = b[1].buf, w->letters = b[2].buf, w->rank = b[3].buf;
    w->children = b[4].buf, w->letter = b[5].buf, w->first = b[6].buf, w->count = b[7].buf, w->words = b[8].buf;
    w->ahead = b[9].buf;
    w->lexicon = lexicon;
    w->width = b[2].len / b[1].len;
    w->nodes = b[9].len / (Py_ssize_t)sizeof(double);
    w->outside = w->nodes - 1;
    return parse_ngrams(ngrams, b + WORD_TABLES - NGRAM_TABLES, &w->lm);
}

static int parse_hotwords(PyObject *tables, Py_buffer *b, Hotwords *h, int64_t tokens) {
    long long codes;
    if (!PyArg_ParseTuple(tables, "y*y*y*y*L", &b[0], &b[1], &b[2], &b[3], &codes))
        return 0;
    h->next = b[0].buf, h->ahead = b[1].buf, h->earned = b[2].buf, h->token_codes = b[3].buf;
    h->nodes = b[1].len / (Py_ssize_t)sizeof(double);
    h->codes = codes;
    h->tokens = tokens;
    h->longest = b[3].len / (Py_ssize_t)sizeof(int64_t) / tokens;
    return 1;
}

static int run(Search *s, const double *emissions, const char *tried, int64_t frame, int64_t frames) {
    const Hypothesis *rows = s->old.items;
    for (size_t i = 0; i < s->old.count; i++)
        if (!fits(s, &rows[i]))
            return -1;
    if (!reserve(&s->column, (size_t)s->tokens) || !reserve(&s->tried, (size_t)s->tokens))
        return 0;
    for (int64_t t = 0; t < frames; t++)
        if (!advance(s, emissions + t * s->tokens, tried + t * s->tokens, frame + t))
            return 0;
    return 1;
}

static PyObject *block(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer b[BLOCK_TABLES] = {{0}}, bw[WORD_TABLES] = {{0}}, bh[HOTWORD_TABLES] = {{0}};
    PyObject *word_tables, *hotword_tables, *result = NULL;
    long long frame, trace_size, tokens, beam;
    Words words;
    Hotwords hotwords;
    Search s = {0};
    s.old.size = s.stayed.size = s.next.size = sizeof(Hypothesis);
    s.trace.size = sizeof(Entry), s.candidates.size = sizeof(Candidate), s.extensions.size = sizeof(Extension);
    s.total.size = sizeof(double), s.joined.size = sizeof(char);
    s.tried.size = s.column.size = s.table.size = sizeof(int64_t);
    if (!PyArg_ParseTuple(args, "LLLLdy*y*y*OO", &frame, &trace_size, &tokens, &beam, &s.threshold, &b[0], &b[1], &b[2],
                          &word_tables, &hotword_tables))
        goto end;
    s.trace_size = trace_size, s.tokens = tokens, s.beam = beam;
    if (b[0].len != b[1].len * (Py_ssize_t)sizeof(double)) {
        PyErr_SetString(PyExc_ValueError, "emissions and tokens tried differ in shape");
        goto end;
    }
    if (word_tables != Py_None) {
        if (!parse_words(word_tables, bw, &words))
            goto end;
        s.words = &words;
    }
    if (hotword_tables != Py_None) {
        if (!parse_hotwords(hotword_tables, bh, &hotwords, tokens))
            goto end;
        s.hotwords = &hotwords;
    }
    size_t n = (size_t)b[2].len / sizeof(Hypothesis);
    int done = reserve(&s.old, n + 1);
    if (done) {
        memcpy(s.old.items, b[2].buf, n * sizeof(Hypothesis));
        s.old.count = n;
        Py_BEGIN_ALLOW_THREADS
        done = run(&s, b[0].buf, b[1].buf, frame, b[1].len / tokens);
        Py_END_ALLOW_THREADS
    }
    if (done < 0)
        PyErr_SetString(PyExc_IndexError, "the state belongs to another search");
    else if (!done)
        PyErr_NoMemory();
    else
        result = Py_BuildValue("y#y#", (char *)s.old.items, (Py_ssize_t)(s.old.count * sizeof(Hypothesis)),
                               s.trace.items ? (char *)s.trace.items : "", (Py_ssize_t)(s.trace.count * sizeof(Entry)));
end:
    free(s.old.items), free(s.stayed.items), free(s.next.items), free(s.trace.items), free(s.candidates.items);
    free(s.extensions.items), free(s.total.items), free(s.tried.items), free(s.column.items), free(s.joined.items);
    free(s.table.items);
    for (int i = 0; i < BLOCK_TABLES; i++)
        PyBuffer_Release(&b[i]);
    for (int i = 0; i < WORD_TABLES; i++)
        PyBuffer_Release(&bw[i]);
    for (int i = 0; i < HOTWORD_TABLES; i++)
        PyBuffer_Release(&bh[i]);
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
    for (int i = 0; i < SCORE_TABLES; i++)
        PyBuffer_Release(&b[i]);
    for (int i = 0; i < NGRAM_TABLES; i++)
        PyBuffer_Release(&tables[i]);
    return result;
}

static PyObject *final(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer b = {0}, tables[WORD_TABLES] = {{0}};
    PyObject *word_tables, *result = NULL;
    Words w;
    if (!PyArg_ParseTuple(args, "y*O", &b, &word_tables) || !parse_words(word_tables, tables, &w))
        goto end;
    const int64_t *state = b.buf;
    Py_ssize_t n = b.len / (Py_ssize_t)(2 * sizeof(int64_t));
    for (Py_ssize_t i = 0; i < n; i++)
        if (state[2 * i] < 0 || state[2 * i] >= w.lm.contexts || state[2 * i + 1] < 0 || state[2 * i + 1] >= w.nodes) {
            PyErr_SetString(PyExc_IndexError, "the state belongs to another search");
            goto end;
        }
    int64_t ranks = 1;
    for (Py_ssize_t i = 0; i < tables[0].len; i++)
        ranks = w.rank[i] + 1 > ranks ? w.rank[i] + 1 : ranks;
    result = PyBytes_FromStringAndSize(NULL, n * (Py_ssize_t)sizeof(double));
    if (result) {
        double *scores = (double *)(void *)PyBytes_AS_STRING(result);
        for (Py_ssize_t i = 0; i < n; i++)
            scores[i] = final_words(&w, state[2 * i], state[2 * i + 1], ranks);
    }
end:
    PyBuffer_Release(&b);
    for (int i = 0; i < WORD_TABLES; i++)
        PyBuffer_Release(&tables[i]);
    return result;
}

/* A row and its score. */
typedef struct {
    double score;
    int64_t row;
} Ranked;

static int compare_ranked(const void *a, const void *b) {
    const Ranked *x = a, *y = b;
    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return x->row < y->row ? -1 : 1;
}

/* Merges, best first, the hypotheses of one key: the best that ends in a boundary and the best that does not. */
static size_t merge(Ranked *ranked, size_t n, const uint64_t *key, const char *ends, int64_t *slots, size_t size,
                    char *seen) {
    size_t groups = 0;
    qsort(ranked, n, sizeof *ranked, compare_ranked);
    memset(slots, -1, size * sizeof *slots);
    for (size_t i = 0; i < n; i++) {
        int64_t row = ranked[i].row;
        char kind = ends[row] ? 2 : 1;
        size_t at = key[row] & (size - 1);
        while (slots[at] >= 0 && key[ranked[slots[at]].row] != key[row])
            at = (at + 1) & (size - 1);
        if (slots[at] < 0) {
            slots[at] = (int64_t)groups;
            seen[groups] = kind;
            ranked[groups++] = ranked[i];
        } else if (!(seen[slots[at]] & kind)) {
            seen[slots[at]] |= kind;
            ranked[slots[at]].score = log_add_exp(ranked[slots[at]].score, ranked[i].score);
        }
    }
    qsort(ranked, groups, sizeof *ranked, compare_ranked);
    return groups;
}

static PyObject *merged(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer b[3] = {{0}};
    PyObject *result = NULL, *rows = NULL, *scores = NULL;
    if (!PyArg_ParseTuple(args, "y*y*y*", &b[0], &b[1], &b[2]))
        return NULL;
    size_t n = (size_t)b[2].len, size = 16;
    while (size < 2 * n)
        size *= 2;
    Ranked *ranked = malloc((n + 1) * sizeof *ranked);
    int64_t *slots = malloc(size * sizeof *slots);
    char *seen = malloc(n + 1);
    if (!ranked || !slots || !seen) {
        PyErr_NoMemory();
        goto end;
    }
    const double *given = b[0].buf;
    for (size_t i = 0; i < n; i++)
        ranked[i] = (Ranked){given[i], (int64_t)i};
    size_t groups = merge(ranked, n, b[1].buf, b[2].buf, slots, size, seen);
    rows = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(groups * sizeof(int64_t)));
    scores = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(groups * sizeof(double)));
    if (rows && scores) {
        for (size_t i = 0; i < groups; i++) {
            ((int64_t *)(void *)PyBytes_AS_STRING(rows))[i] = ranked[i].row;
            ((double *)(void *)PyBytes_AS_STRING(scores))[i] = ranked[i].score;
        }
        result = PyTuple_Pack(2, rows, scores);
    }
end:
    Py_XDECREF(rows);
    Py_XDECREF(scores);
    free(ranked), free(slots), free(seen);
    for (int i = 0; i < 3; i++)
        PyBuffer_Release(&b[i]);
    return result;
}

static PyMethodDef methods[] = {
    {"final", final, METH_VARARGS, "final(state, words)\n\nWhat WordScorer.final gives, as bytes."},
    {"merged", merged, METH_VARARGS,
     "merged(scores, keys, ends)\n\nRows and scores as BeamSearch._merged gives them, as bytes."},
    {"score", score, METH_VARARGS,
     "score(ngrams, contexts, words)\n\nWhat NgramModel.score gives, as bytes."},
    {"block", block, METH_VARARGS,
     "block(frame, trace_size, tokens, beam, threshold, emissions, tried, hypotheses, words, hotwords)\n\n"
     "Hypotheses and new trace entries after some frames, as bytes; frames of no hypotheses stay so."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_kernel", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModule_Create(&definition); }
