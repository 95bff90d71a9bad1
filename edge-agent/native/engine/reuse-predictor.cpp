#include "reuse-predictor.h"

#include "log-exp.h"
#include "reuse-weights.h"
#include "score-row.h"
#include "widest-vectors.h"

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
static const float VANISHED = -200;                              // its exponential is 0

void reuse_predictor_init(reuse_predictor & p, int experts) {
    const size_t n = size_t(experts);
    p.experts = experts;
    p.rates.resize(REUSE_RATES * n);
    p.trace.resize(n);
    p.features.resize(REUSE_FEATURES * n);
    p.features_before.resize(REUSE_FEATURES * n);
    for (auto * features : {&p.features, &p.features_before}) std::fill_n(features->begin(), n, 1.0f);  // the constant
    p.inputs.resize(REUSE_INPUTS * n);
    p.inputs_before.resize(REUSE_INPUTS * n);
    p.inputs_due.resize(REUSE_INPUTS * n);
    p.weights.resize(REUSE_INPUTS * n * n);
    p.worth.resize(n);
    p.worth_before.resize(n);
    p.step.resize(n);
    p.expected.reserve(n);
    reuse_predictor_reset(p);
}

void reuse_predictor_reset(reuse_predictor & p) {
    for (auto * values : {&p.rates, &p.trace, &p.inputs, &p.inputs_before, &p.worth, &p.step}) std::fill(values->begin(), values->end(), 0.0f);
    std::fill(p.weights.begin(), p.weights.end(), 0.0f);
    std::fill(p.seen, p.seen + REUSE_RATES, 0.0f);
    p.shared[0] = 0;
    std::fill(p.shared + 1, p.shared + REUSE_FEATURES, 1.0f / REUSE_RATES);
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
        float * rates = p.rates.data() + r * p.experts;
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

// What has all but vanished is made 0: it would come to rest at a denormal, which is slow to multiply.
WIDEST_VECTORS static void decay(float * rates, int experts, float keep) {
    for (int e = 0; e < experts; e++) {
        const float kept = rates[e] * keep;
        rates[e] = rates[e] > 1e-20f ? kept : 0;
    }
}

static void decay_towards(float * rates, int experts, float keep, const int32_t * ids, int k) {
    decay(rates, experts, keep);
    for (int i = 0; i < k; i++) rates[ids[i]] += 1 - keep;
}

// What is left after a token.
static float kept_of(float half_life) { return std::exp2(-1 / half_life); }

static void count_uses(reuse_predictor & p, const int32_t * ids, int k) {
    static const float RATES_KEEP[REUSE_RATES] = {kept_of(RATE_HALF_LIVES[0]), kept_of(RATE_HALF_LIVES[1]), kept_of(RATE_HALF_LIVES[2])};
    static const float TRACE_KEEP = kept_of(TRACE_HALF_LIFE);
    for (int r = 0; r < REUSE_RATES; r++) {
        decay_towards(p.rates.data() + r * p.experts, p.experts, RATES_KEEP[r], ids, k);
        p.seen[r] = p.seen[r] * RATES_KEEP[r] + 1 - RATES_KEEP[r];
    }
    decay_towards(p.trace.data(), p.experts, TRACE_KEEP, ids, k);
    p.tokens++;
    p.uses += uint64_t(k);
}

// In place; what fills up the last block is valid for both.
template <void (*OF_BLOCK)(float *)>
__attribute__((always_inline)) static inline void in_blocks(int n, float * x) {
    int e = 0;
    for (; e + LOG_EXP_BLOCK <= n; e += LOG_EXP_BLOCK) OF_BLOCK(x + e);
    if (e == n) return;
    float block[LOG_EXP_BLOCK];
    std::fill(std::copy(x + e, x + n, block), block + LOG_EXP_BLOCK, 1.0f);
    OF_BLOCK(block);
    std::copy(block, block + n - e, x + e);
}

WIDEST_VECTORS static void log_ratios(int n, const float * __restrict rates, float seen, float mean, float * __restrict out) {
    for (int e = 0; e < n; e++) out[e] = (rates[e] / seen + LEAST_RATE) / (mean + LEAST_RATE);
    in_blocks<log_block>(n, out);
}

static void make_features(reuse_predictor & p, float mean) {
    for (int r = 0; r < REUSE_RATES; r++) {
        const float * rates = p.rates.data() + r * p.experts;
        float * out = p.features.data() + (r + 1) * p.experts;
        log_ratios(p.experts, rates, p.seen[r], mean, out);
    }
}

// Of the square roots, scaled.
WIDEST_VECTORS static void deviations(int n, const float * of, float scale, float expected, float * out) {
    for (int e = 0; e < n; e++) out[e] = scale * (std::sqrt(of[e]) - expected);
}

WIDEST_VECTORS bool reuse_inputs_of(const float * __restrict scores, int experts, float * __restrict out) {
    const float highest = score_row_extent(scores, experts).highest;
    float total = 0;
    for (int e = 0; e < experts; e++) {
        const float score = std::isfinite(scores[e]) ? scores[e] - highest : VANISHED;
        out[e] = std::max(VANISHED, score);
    }
    in_blocks<exp_block>(experts, out);
    for (int e = 0; e < experts; e++) total += out[e];
    for (int e = 0; e < experts; e++) out[e] /= total;
    deviations(experts, out, SCORE_SCALE, std::sqrt(1 / float(experts)), out);
    return highest > -INFINITY;
}

static void use_inputs(const int32_t * ids, int k, int experts, float * out) {
    const float uniform = std::sqrt(1 / float(experts)), used = std::sqrt(1 / float(k));
    std::fill(out, out + experts, -SCORE_SCALE * uniform);
    for (int i = 0; i < k; i++) out[ids[i]] = SCORE_SCALE * (used - uniform);
}

// `inputs_before` holds those of the token before.
static void make_inputs(reuse_predictor & p, float mean, const int32_t * ids, int k, const reuse_scores & scores) {
    const int n = p.experts;
    float * here = p.inputs.data(), * trace = here + n, * before = trace + n, * below = before + n;
    const float expected = std::sqrt(mean);
    if (scores.here_inputs) std::copy(scores.here_inputs, scores.here_inputs + n, here);
    else if (!scores.here || !reuse_inputs_of(scores.here, n, here)) use_inputs(ids, k, n, here);
    deviations(n, p.trace.data(), TRACE_SCALE, expected, trace);
    for (int e = 0; e < n; e++) before[e] = BEFORE_SCALE * p.inputs_before[e];
    if (scores.below_inputs) std::copy(scores.below_inputs, scores.below_inputs + n, below);
    else if (!scores.below || !reuse_inputs_of(scores.below, n, below)) std::fill(below, below + n, 0.0f);
}

// e^exponent times the mean, where the exponent is within reason.
WIDEST_VECTORS static void worth_of_exponents(int n, float mean, float * worth) {
    for (int e = 0; e < n; e++) worth[e] = std::min(MOST_EXPONENT, std::max(LEAST_EXPONENT, worth[e]));
    in_blocks<exp_block>(n, worth);
    for (int e = 0; e < n; e++) worth[e] *= mean;
}

// The features' share of the exponents.
WIDEST_VECTORS static void weigh_features(int n, const float * shared, const float * __restrict features, float * __restrict worth) {
    for (int e = 0; e < n; e++) {
        float sum = 0;
        for (int j = 0; j < REUSE_FEATURES; j++) sum += shared[j] * features[j * n + e];
        worth[e] = sum;
    }
}

static void predict(reuse_predictor & p, float mean) {
    const int n = p.experts;
    float * worth = p.worth.data();
    weigh_features(n, p.shared, p.features.data(), worth);
    p.norm = reuse_weights_read(REUSE_INPUTS * n, n, p.inputs.data(), p.inputs_due.data(), p.step.data(), p.weights.data(), worth);
    worth_of_exponents(n, mean, worth);
}

// Moves what was predicted a token ago towards what this token tells. `p.worth` is this token's.
WIDEST_VECTORS static void learn(reuse_predictor & p, float mean, float norm_before, const int32_t * ids, int k, float horizon) {
    const int n = p.experts;
    const float discount = 1 - 1 / horizon;
    float * step = p.step.data();
    for (int e = 0; e < n; e++) step[e] = discount * p.worth[e];
    for (int i = 0; i < k; i++) step[ids[i]] = AFTER_USE * step[ids[i]] + 1 - discount;
    for (int e = 0; e < n; e++) step[e] = (step[e] - p.worth_before[e]) / std::sqrt(mean * (p.worth_before[e] + 1e-3f));

    // The sums of all features side by side: each waits for itself.
    float gradients[REUSE_FEATURES] = {};
    for (int e = 0; e < n; e++) {
        for (int j = 0; j < REUSE_FEATURES; j++) gradients[j] += step[e] * p.features_before[size_t(j * n + e)];
    }
    for (int j = 0; j < REUSE_FEATURES; j++) p.shared[j] += SHARED_STEP * gradients[j] / float(n);
    const float rate = INPUT_STEP * float(p.tokens) / (float(p.tokens) + WARM_UP_TOKENS) / norm_before;
    for (int e = 0; e < n; e++) step[e] *= rate;
}

void reuse_predictor_observe(reuse_predictor & p, const int32_t * ids, int k, const reuse_scores & scores, int capacity) {
    std::swap(p.features, p.features_before);
    std::swap(p.inputs_due, p.inputs_before);
    std::swap(p.inputs_before, p.inputs);
    std::swap(p.worth, p.worth_before);
    const bool first = p.tokens == 0;
    if (first && !p.expected.empty()) begin_as_expected(p, k);
    count_uses(p, ids, k);
    const float mean = float(double(p.uses) / (double(p.tokens) * p.experts));
    make_features(p, mean);
    make_inputs(p, mean, ids, k, scores);
    const float norm_before = p.norm;
    predict(p, mean);
    const float turn = float(double(capacity) * double(p.tokens) / double(p.uses));  // capacity / K, where K may vary
    if (!first) learn(p, mean, norm_before, ids, k, std::min(MOST_HORIZON, std::max(LEAST_HORIZON, HORIZON_TURNS * turn)));
}
