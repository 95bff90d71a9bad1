#include "reuse-predictor.h"

#include <algorithm>
#include <cmath>

// Chosen on the training texts of the reference model, by misses at 8, 13, 16 and 24 of 32 experts.
static const float HORIZON_TOKENS = 12;                          // 8 to 16 are within 0.3% of the way to Belady
static const float RATE_HALF_LIVES[REUSE_RATES] = {8, 64, 512};
static const float TRACE_HALF_LIFE = 4;
static const float LEAST_RATE = 0.02f;                           // added to rates before the logarithm
static const float SHARED_STEP = 0.02f, INPUT_STEP = 0.15f;
static const float WARM_UP_TOKENS = 256;                         // INPUT_STEP is halved at this many
static const float SCORE_SCALE = 5, TRACE_SCALE = 2;             // of the two kinds of input
static const float MOST_EXPONENT = 4, LEAST_EXPONENT = -6;

void reuse_predictor_init(reuse_predictor & p, int experts) {
    const size_t n = size_t(experts);
    p.experts = experts;
    p.rates.resize(REUSE_RATES * n);
    p.trace.resize(n);
    p.features.resize(REUSE_FEATURES * n);
    p.features_before.resize(REUSE_FEATURES * n);
    p.inputs.resize(2 * n);
    p.inputs_before.resize(2 * n);
    p.inputs_due.resize(2 * n);
    p.weights.resize(2 * n * n);
    p.worth.resize(n);
    p.worth_before.resize(n);
    p.step.resize(n);
    reuse_predictor_reset(p);
}

void reuse_predictor_reset(reuse_predictor & p) {
    for (auto * values : {&p.rates, &p.trace, &p.inputs, &p.inputs_before, &p.weights, &p.worth, &p.step}) std::fill(values->begin(), values->end(), 0.0f);
    std::fill(p.seen, p.seen + REUSE_RATES, 0.0f);
    p.shared[0] = 0;
    std::fill(p.shared + 1, p.shared + REUSE_FEATURES, 1.0f / REUSE_RATES);
    p.tokens = p.uses = 0;
}

// What has all but vanished is made 0: it would come to rest at a denormal, which is slow to multiply.
static void decay_towards(float * rates, int experts, float keep, const int32_t * ids, int k) {
    for (int e = 0; e < experts; e++) rates[e] = rates[e] > 1e-20f ? rates[e] * keep : 0;
    for (int i = 0; i < k; i++) rates[ids[i]] += 1 - keep;
}

static void count_uses(reuse_predictor & p, const int32_t * ids, int k) {
    for (int r = 0; r < REUSE_RATES; r++) {
        const float keep = std::exp2(-1 / RATE_HALF_LIVES[r]);
        decay_towards(p.rates.data() + r * p.experts, p.experts, keep, ids, k);
        p.seen[r] = p.seen[r] * keep + 1 - keep;
    }
    decay_towards(p.trace.data(), p.experts, std::exp2(-1 / TRACE_HALF_LIFE), ids, k);
    p.tokens++;
    p.uses += uint64_t(k);
}

static void make_features(reuse_predictor & p, float mean) {
    std::fill(p.features.begin(), p.features.begin() + p.experts, 1.0f);
    for (int r = 0; r < REUSE_RATES; r++) {
        const float * rates = p.rates.data() + r * p.experts;
        float * out = p.features.data() + (r + 1) * p.experts;
        for (int e = 0; e < p.experts; e++) out[e] = std::log((rates[e] / p.seen[r] + LEAST_RATE) / (mean + LEAST_RATE));
    }
}

// The softmax of the scores into `out`; false where none is finite.
static bool softmax(const float * scores, int experts, float * out) {
    float highest = -INFINITY, total = 0;
    for (int e = 0; e < experts; e++) {
        if (std::isfinite(scores[e])) highest = std::max(highest, scores[e]);
    }
    for (int e = 0; e < experts; e++) total += out[e] = std::isfinite(scores[e]) ? std::exp(scores[e] - highest) : 0;
    for (int e = 0; e < experts; e++) out[e] /= total;
    return highest > -INFINITY;
}

static void make_inputs(reuse_predictor & p, float mean, const int32_t * ids, int k, const float * scores) {
    const int n = p.experts;
    float * of_scores = p.inputs.data(), * of_trace = of_scores + n;
    const float uniform = std::sqrt(1 / float(n)), expected = std::sqrt(mean);
    if (!scores || !softmax(scores, n, of_scores)) {
        std::fill(of_scores, of_scores + n, 0.0f);
        for (int i = 0; i < k; i++) of_scores[ids[i]] = 1 / float(k);
    }
    for (int e = 0; e < n; e++) of_scores[e] = SCORE_SCALE * (std::sqrt(of_scores[e]) - uniform);
    for (int e = 0; e < n; e++) of_trace[e] = TRACE_SCALE * (std::sqrt(p.trace[e]) - expected);
}

// The one pass over `weights`, which cost the most, both takes the step that is due and reads them. It runs along rows,
// which vectorises without reordering any sum.
static void predict(reuse_predictor & p, float mean) {
    const int n = p.experts;
    float * worth = p.worth.data();
    std::fill(p.worth.begin(), p.worth.end(), 0.0f);
    for (int j = 0; j < REUSE_FEATURES; j++) {
        const float a = p.shared[j], * feature = p.features.data() + j * n;
        for (int e = 0; e < n; e++) worth[e] += a * feature[e];
    }
    for (int i = 0; i < 2 * n; i++) {
        const float u = p.inputs[i], due = p.inputs_due[i], * step = p.step.data();
        float * row = p.weights.data() + size_t(i) * size_t(n);
        for (int e = 0; e < n; e++) {
            row[e] += due * step[e];
            worth[e] += u * row[e];
        }
    }
    for (int e = 0; e < n; e++) worth[e] = mean * std::exp(std::min(MOST_EXPONENT, std::max(LEAST_EXPONENT, worth[e])));
}

// Moves what was predicted a token ago towards what this token tells. `p.worth` is this token's.
static void learn(reuse_predictor & p, float mean, const int32_t * ids, int k) {
    const int n = p.experts;
    const float discount = 1 - 1 / HORIZON_TOKENS;
    float * step = p.step.data();
    for (int e = 0; e < n; e++) step[e] = discount * p.worth[e];
    for (int i = 0; i < k; i++) step[ids[i]] += 1 - discount;
    for (int e = 0; e < n; e++) step[e] = (step[e] - p.worth_before[e]) / std::sqrt(mean * (p.worth_before[e] + 1e-3f));

    for (int j = 0; j < REUSE_FEATURES; j++) {
        const float * feature = p.features_before.data() + j * n;
        float gradient = 0;
        for (int e = 0; e < n; e++) gradient += step[e] * feature[e];
        p.shared[j] += SHARED_STEP * gradient / float(n);
    }
    float norm = 1;
    for (const float u : p.inputs_before) norm += u * u;
    const float rate = INPUT_STEP * float(p.tokens) / (float(p.tokens) + WARM_UP_TOKENS) / norm;
    for (int e = 0; e < n; e++) step[e] *= rate;
}

void reuse_predictor_observe(reuse_predictor & p, const int32_t * ids, int k, const float * scores) {
    std::swap(p.features, p.features_before);
    std::swap(p.inputs_due, p.inputs_before);
    std::swap(p.inputs_before, p.inputs);
    std::swap(p.worth, p.worth_before);
    count_uses(p, ids, k);
    const float mean = float(double(p.uses) / (double(p.tokens) * p.experts));
    make_features(p, mean);
    make_inputs(p, mean, ids, k, scores);
    predict(p, mean);
    if (p.tokens > 1) learn(p, mean, ids, k);
}
