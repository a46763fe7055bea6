/*
 * What n-gram model, tree of words and hot-words add to a hypothesis: NgramModel, WordScorer, LetterTree and HotwordScorer
 * of the modules beside, with the same operations in the same order.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { UNKNOWN = 0, NO_CONTEXT = 0, ROOT = 0, SPACE = 0, NO_CODE = -1 };
enum { HOTWORD, CONTEXT, NODE, FIELDS }; /* of a scorer's state, as in state.py */

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
    int64_t ranks;             /* words that sound alike which tokens tell apart */
    double weight, bonus, penalty;
    double most_ahead;         /* of all nodes */
    double most_completed;     /* no word adds more in place of its look-ahead */
} Words;

/* Tables of Hotwords. */
typedef struct {
    const int32_t *next;   /* shape = (nodes, codes) */
    const double *ahead;   /* of each node */
    const double *earned;  /* of each node */
    const int64_t *token_codes; /* shape = (longest, tokens) */
    int64_t nodes, codes, longest, tokens;
    double most;           /* no token adds more besides the look-ahead of the node before it */
} Hotwords;

/* words, hotwords: NULL where there are none; serial: a number of these tables, which no others have. */
typedef struct {
    const Words *words;
    const Hotwords *hotwords;
    int64_t serial;
} Scorer;

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
    int64_t first = w->children[node], count = w->children[node + 1] - first;
    const uint8_t *found = count ? memchr(w->letter + first, (int)letter, (size_t)count) : NULL;
    return found ? found - w->letter : w->outside;
}

/*
 * The same word ends in the same context again and again: in many hypotheses, and frame after frame. A thread remembers
 * what it found last, a slot for each hash, and looks into the language model for what is not there.
 */
typedef struct {
    int64_t serial, context, node, rank, following;
    double score;
} Ending;

enum { ENDINGS = 1 << 12 };
static ASR_THREAD_LOCAL Ending endings[ENDINGS];

/* WordScorer._completed, of the word of this rank. */
static double complete(const Scorer *s, int64_t context, int64_t node, int64_t rank, int64_t *following) {
    const Words *w = s->words;
    uint64_t hash = ((uint64_t)context * 0x9E3779B97F4A7C15u) ^ ((uint64_t)(node * 8 + rank) * 0xC2B2AE3D27D4EB4Fu);
    Ending *known = &endings[hash >> 52];
    if (known->serial == s->serial && known->context == context && known->node == node && known->rank == rank) {
        *following = known->following;
        return known->score;
    }
    int64_t word = rank < w->count[node] ? w->words[w->first[node] + rank] : UNKNOWN;
    double score = w->weight * (double)ngram_score(&w->lm, context, word, following) + w->bonus;
    if (word == UNKNOWN)
        score -= w->penalty;
    score -= w->ahead[node];
    score = rank > 0 && word == UNKNOWN ? -INFINITY : score;
    *known = (Ending){s->serial, context, node, rank, *following, score};
    return score;
}

/* WordScorer.extend */
static double extend_words(const Scorer *s, int64_t *state, int64_t token) {
    const Words *w = s->words;
    int64_t node = state[NODE];
    double score = -w->ahead[node];
    if (w->begins[token]) {
        if (node != ROOT) {
            int64_t following;
            score = complete(s, state[CONTEXT], node, w->rank[token], &following);
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

/* WordScorer.final */
static double final_words(const Scorer *s, int64_t context, int64_t node) {
    const Words *w = s->words;
    int64_t following, choices = w->count[node] < w->ranks ? w->count[node] : w->ranks;
    double best = 0.0;
    for (int64_t rank = 0; node != ROOT && (rank == 0 || rank < choices); rank++) {
        double score = complete(s, context, node, rank, &following);
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

/* What a token adds to a hypothesis; `state` becomes that after it. */
static double extend(const Scorer *s, int64_t *state, int64_t token) {
    double score = s->words ? extend_words(s, state, token) : 0.0;
    return s->hotwords ? extend_hotwords(s->hotwords, state, token) + score : score;
}

/* What is added if the text ends here; Scorer.final */
static double final_score(const Scorer *s, const int64_t *state) {
    double score = s->words ? final_words(s, state[CONTEXT], state[NODE]) : 0.0;
    const Hotwords *h = s->hotwords;
    return h ? h->earned[state[HOTWORD]] - h->ahead[state[HOTWORD]] + score : score;
}

/*
 * More than any token that begins a word, and any that does not, can add to a state. A look-ahead is the best below its
 * node, so that it falls from node to node; the slack is for rounding.
 */
static void most_added(const Scorer *s, const int64_t *state, double *beginning, double *inside) {
    static const double slack = 1e-6;
    const Words *w = s->words;
    double hot = s->hotwords ? s->hotwords->most - s->hotwords->ahead[state[HOTWORD]] : 0.0;
    *beginning = *inside = hot + slack;
    if (!w)
        return;
    double ahead = w->ahead[state[NODE]];
    if (!(w->weight >= 0)) {
        *beginning = *inside = INFINITY;
    } else if (state[NODE] == ROOT) {
        *beginning = w->lexicon ? -INFINITY : *beginning + w->most_ahead - ahead;
        *inside += w->most_ahead - ahead;
    } else {
        double outside = w->ahead[w->outside];
        *beginning += w->most_completed - ahead + w->most_ahead;
        *inside += outside > ahead ? outside - ahead : 0.0;
    }
}
