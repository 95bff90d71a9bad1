#include "reuse-predictor.h"

#include "log-exp.h"
#include "reuse-weights.h"

#include <algorithm>
#include <cmath>

// Chosen on the training texts of the reference model, by misses at 8, 13, 16 and 24 of 32 experts.
static const float HORIZON_TURNS = 3;                            // of capacity / K tokens
static const float LEAST_HORIZON = 4, MOST_HORIZON = 20;         // tokens
static const float AFTER_USE = 0.8f;                             // what uses after the first count
static const float RATE_HALF_LIVES[REUSE_RATES] = {8, 64, 512};
static const float TRACE_HALF_LIFE = 4;
static const float LEAST_RATE = 0.02f;                           // added to rates before the logarithm
static const float SHARED_STEP = 0.02f, INPUT_STEP = 0.1f;
static const float WARM_UP_TOKENS = 256;                         // INPUT_STEP is halved at this many
static const float SCORE_SCALE = 8, TRACE_SCALE = 1;             // of the kinds of input; they decide how fast each is learned
static const float BEFORE_SCALE = 0.5f;                          // of the token before, against this token's
static const int EXPECTED_TOKENS = 32;                           // that a warm list counts for, see README.md of test/bench
static const double EXPECTED_FALL = 3;                           // of the logarithm of uses, from the best place to the last
static const float MOST_EXPONENT = 4, LEAST_EXPONENT = -6;
static const float LEAST_ROOT = -40;                             // logarithm of a probability's root, against the highest: next to nothing
static const float LEAST_KEPT = 1e-20f;                          // of a rate: it would come to rest at a denormal, which is slow to multiply

void reuse_predictor_init(reuse_predictor & p, int experts) {
    p.experts = experts;
    p.width = whole_lanes(experts);
    const size_t n = size_t(p.width);
    for (reuse_row * row : {&p.used, &p.trace, &p.worth, &p.worth_before, &p.step}) row->resize(n);
    for (reuse_row * rows : {&p.rates, &p.features, &p.features_before}) rows->resize(REUSE_RATES * n);
    for (reuse_row * rows : {&p.inputs, &p.inputs_before, &p.inputs_due}) rows->resize(REUSE_INPUTS * n);
    p.weights.resize(REUSE_INPUTS * n * n);
    p.expected.reserve(size_t(experts));
    reuse_predictor_reset(p);
}

void reuse_predictor_reset(reuse_predictor & p) {
    for (reuse_row * values : {&p.rates, &p.trace, &p.inputs, &p.inputs_before, &p.worth, &p.step, &p.weights}) std::fill(values->begin(), values->end(), 0.0f);
    std::fill(p.seen, p.seen + REUSE_RATES, 0.0f);
    p.shared[0] = 0;
    std::fill(p.shared + 1, p.shared + 1 + REUSE_RATES, 1.0f / REUSE_RATES);
    p.tokens = p.uses = 0;
    p.expected.clear();
}

void reuse_predictor_expect(reuse_predictor & p, int expert) {
    if (p.tokens > 0 || p.expected.size() == size_t(p.experts) || std::find(p.expected.begin(), p.expected.end(), expert) != p.expected.end()) return;
    p.expected.push_back(expert);
}

// As if EXPECTED_TOKENS tokens of k experts had been seen, whose uses fall exponentially over the places of the list.
static void begin_as_expected(reuse_predictor & p, int k) {
    const double experts = p.experts, named = double(p.expected.size()), all = 1 - std::exp(-EXPECTED_FALL);
    const double unnamed = named < experts ? (std::exp(-EXPECTED_FALL * named / experts) - std::exp(-EXPECTED_FALL)) / (experts - named) : 0;
    for (int r = 0; r < REUSE_RATES; r++) {
        float * rates = p.rates.data() + r * p.width;
        p.seen[r] = 1 - std::exp2(-float(EXPECTED_TOKENS) / RATE_HALF_LIVES[r]);
        std::fill(rates, rates + p.experts, float(p.seen[r] * k * unnamed / all));
        for (size_t i = 0; i < p.expected.size(); i++) {
            const double place = (double(i) + 0.5) / experts;
            rates[p.expected[i]] = float(p.seen[r] * k * EXPECTED_FALL / experts * std::exp(-EXPECTED_FALL * place) / all);
        }
    }
    p.tokens = EXPECTED_TOKENS;
    p.uses = uint64_t(EXPECTED_TOKENS) * uint64_t(k);
}

namespace {

// What is left after a token.
float kept_of(float half_life) { return std::exp2(-1 / half_life); }

// Each loop below makes at most one choice, between two values that are there already, and stores what it chose: where more would depend on
// it, compilers would branch instead of making vectors.

struct token {
    const int32_t * ids;
    int k;
    const reuse_scores & scores;
    bool first;
    float mean;     // b
    float horizon;
};

// That it is whole lanes is told to the compiler, which then makes no code for what is left over.
INLINED int width_of(const reuse_predictor & p) { return p.width / LANES * LANES; }

INLINED void count_uses(int n, const float * __restrict used, float keep, float * __restrict rates) {
    for (int e = 0; e < n; e++) rates[e] = rates[e] > LEAST_KEPT ? rates[e] : 0;
    for (int e = 0; e < n; e++) rates[e] = rates[e] * keep + used[e] * (1 - keep);
}

INLINED void log_ratios(int n, const float * __restrict rates, float seen, float mean, float * __restrict out) {
    const float share = 1 / (seen * (mean + LEAST_RATE)), least = LEAST_RATE / (mean + LEAST_RATE);
    for (int e = 0; e < n; e++) out[e] = quick_log(rates[e] * share + least);
}

// p.seen is this token's.
INLINED void make_features(reuse_predictor & p, float mean) {
    static const float RATES_KEEP[REUSE_RATES] = {kept_of(RATE_HALF_LIVES[0]), kept_of(RATE_HALF_LIVES[1]), kept_of(RATE_HALF_LIVES[2])};
    static const float TRACE_KEEP = kept_of(TRACE_HALF_LIFE);
    const int n = width_of(p);
    for (int r = 0; r < REUSE_RATES; r++) {
        float * rates = p.rates.data() + r * n;
        count_uses(n, p.used.data(), RATES_KEEP[r], rates);
        p.seen[r] = p.seen[r] * RATES_KEEP[r] + 1 - RATES_KEEP[r];
        log_ratios(n, rates, p.seen[r], mean, p.features.data() + r * n);
    }
    count_uses(n, p.used.data(), TRACE_KEEP, p.trace.data());
}

template <int BYTES>
INLINED bool inputs_of(const float * __restrict scores, int experts, float * __restrict out) {
    const int n = whole_lanes(experts);
    for (int e = 0; e < experts; e++) out[e] = std::isfinite(scores[e]) ? scores[e] : -INFINITY;
    for (int e = experts; e < n; e++) out[e] = -INFINITY;
    const float highest = highest_of<BYTES>(out, n);
    for (int e = 0; e < n; e++) {
        const float root = (out[e] - highest) / 2;
        out[e] = root > LEAST_ROOT ? root : LEAST_ROOT;
    }
    for (int e = 0; e < n; e++) out[e] = quick_exp(out[e]);
    const float scale = SCORE_SCALE / std::sqrt(sum_of_products<BYTES>(out, out, n)), expected = SCORE_SCALE * std::sqrt(1 / float(experts));
    for (int e = 0; e < n; e++) out[e] = scale * out[e] - expected;
    for (int e = experts; e < n; e++) out[e] = 0;
    return highest > -INFINITY;
}

void use_inputs(const token & t, int experts, float * out) {
    const float uniform = std::sqrt(1 / float(experts)), used = std::sqrt(1 / float(t.k));
    std::fill(out, out + experts, -SCORE_SCALE * uniform);
    for (int i = 0; i < t.k; i++) out[t.ids[i]] = SCORE_SCALE * (used - uniform);
}

INLINED void copy_row(int n, const float * __restrict from, float scale, float * __restrict to) {
    for (int e = 0; e < n; e++) to[e] = scale * from[e];
}

// `inputs_before` holds those of the token before.
template <int BYTES>
INLINED void make_inputs(reuse_predictor & p, const token & t) {
    const int n = width_of(p);
    float * __restrict here = p.inputs.data(), * __restrict trace = here + n, * before = trace + n, * below = before + n;
    const float * __restrict recent = p.trace.data(), expected = std::sqrt(t.mean);
    if (t.scores.here_inputs) copy_row(n, t.scores.here_inputs, 1, here);
    else if (!t.scores.here || !inputs_of<BYTES>(t.scores.here, p.experts, here)) use_inputs(t, p.experts, here);
    for (int e = 0; e < n; e++) trace[e] = TRACE_SCALE * (std::sqrt(recent[e]) - expected);
    for (int e = p.experts; e < n; e++) trace[e] = 0;
    copy_row(n, p.inputs_before.data(), BEFORE_SCALE, before);
    if (t.scores.below_inputs) copy_row(n, t.scores.below_inputs, 1, below);
    else if (!t.scores.below || !inputs_of<BYTES>(t.scores.below, p.experts, below)) std::fill(below, below + n, 0.0f);
}

// The features' share of the exponents.
INLINED void weigh_features(int n, const float * shared, const float * __restrict features, float * __restrict worth) {
    for (int e = 0; e < n; e++) {
        float sum = shared[0];
        for (int r = 0; r < REUSE_RATES; r++) sum += shared[1 + r] * features[r * n + e];
        worth[e] = sum;
    }
}

// e^exponent times the mean, where the exponent is within reason.
INLINED void worth_of_exponents(int n, float mean, float * worth) {
    for (int e = 0; e < n; e++) worth[e] = worth[e] > LEAST_EXPONENT ? worth[e] : LEAST_EXPONENT;
    for (int e = 0; e < n; e++) worth[e] = worth[e] < MOST_EXPONENT ? worth[e] : MOST_EXPONENT;
    for (int e = 0; e < n; e++) worth[e] = mean * quick_exp(worth[e]);
}

template <int BYTES>
INLINED void predict(reuse_predictor & p, float mean) {
    const int n = width_of(p), rows = REUSE_INPUTS * n;
    float * worth = p.worth.data();
    weigh_features(n, p.shared, p.features.data(), worth);
    read_weights<BYTES>({rows, n, p.inputs.data(), p.inputs_due.data(), p.step.data(), p.weights.data(), worth});
    p.norm = 1 + sum_of_products<BYTES>(p.inputs.data(), p.inputs.data(), rows);
    worth_of_exponents(n, mean, worth);
}

// By how much what was predicted a token ago falls short of what this token tells, weighed.
INLINED void weigh_errors(const reuse_predictor & p, const token & t, float * __restrict error) {
    const int n = width_of(p);
    const float discount = 1 - 1 / t.horizon, floor = t.mean * 1e-3f;
    const float * __restrict worth = p.worth.data(), * __restrict before = p.worth_before.data(), * __restrict used = p.used.data();
    for (int e = 0; e < n; e++) {
        const float later = discount * worth[e], now = AFTER_USE * later + (1 - discount);
        error[e] = (used[e] * now + (1 - used[e]) * later - before[e]) / std::sqrt(t.mean * before[e] + floor);
    }
    for (int e = p.experts; e < n; e++) error[e] = 0;
}

// Moves what was predicted a token ago towards what this token tells. `p.worth` is this token's.
template <int BYTES>
INLINED void learn(reuse_predictor & p, const token & t, float norm_before) {
    const int n = width_of(p);
    float * step = p.step.data();
    weigh_errors(p, t, step);
    const float shared_step = SHARED_STEP / float(p.experts);
    p.shared[0] += shared_step * sum_of<BYTES>(step, n);
    for (int r = 0; r < REUSE_RATES; r++) p.shared[1 + r] += shared_step * sum_of_products<BYTES>(step, p.features_before.data() + r * n, n);
    const float rate = INPUT_STEP * float(p.tokens) / (float(p.tokens) + WARM_UP_TOKENS) / norm_before;
    for (int e = 0; e < n; e++) step[e] *= rate;
}

template <int BYTES>
INLINED void observe(reuse_predictor & p, const token & t) {
    make_features(p, t.mean);
    make_inputs<BYTES>(p, t);
    const float norm_before = p.norm;
    predict<BYTES>(p, t.mean);
    if (!t.first) learn<BYTES>(p, t, norm_before);
}

IN_WIDEST_VECTORS(void, observe_widest, (reuse_predictor & p, const token & t), observe, (p, t))
IN_WIDEST_VECTORS(bool, inputs_widest, (const float * scores, int experts, float * out), inputs_of, (scores, experts, out))

}  // namespace

bool reuse_inputs_of(const float * scores, int experts, float * out) { return inputs_widest(scores, experts, out); }

void reuse_predictor_observe(reuse_predictor & p, const int32_t * ids, int k, const reuse_scores & scores, int capacity) {
    std::swap(p.features, p.features_before);
    std::swap(p.inputs_due, p.inputs_before);
    std::swap(p.inputs_before, p.inputs);
    std::swap(p.worth, p.worth_before);
    const bool first = p.tokens == 0;
    if (first && !p.expected.empty()) begin_as_expected(p, k);
    p.tokens++;
    p.uses += uint64_t(k);
    std::fill(p.used.begin(), p.used.end(), 0.0f);
    for (int i = 0; i < k; i++) p.used[size_t(ids[i])] = 1;
    const float turn = float(double(capacity) * double(p.tokens) / double(p.uses));  // capacity / K, where K may vary
    const float mean = float(double(p.uses) / (double(p.tokens) * p.experts));
    observe_widest(p, {ids, k, scores, first, mean, std::min(MOST_HORIZON, std::max(LEAST_HORIZON, HORIZON_TURNS * turn))});
}
