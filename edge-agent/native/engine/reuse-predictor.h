// How soon each expert of one layer will be used again, learned while the layer runs: what the adaptive eviction policy
// ranks members by.
//
// The worth of expert e after the layer's token t is the discounted number of its uses to come,
//
//   v_t(e) = (1-g) * sum over s > t of g^(s-t-1) * [e is used at s],    g = 1 - 1/HORIZON_TOKENS
//
// and is predicted as  b * exp(a . f(e) + w_e . u)  where b = K/E is the mean of all,
//   f(e)  a constant, and the logarithm of how often e was used lately, against b, at three half-lives: what LRU, LFU and
//         LFRU know, in one scale. a is the layer's own, so each layer finds how much recency and frequency count;
//   u     what is going on: for each expert the router's softmax probability for the token (where scores are not known, 1/K
//         for the K used), and how often it was used in the last few tokens (half-life 4), both as deviations of square
//         roots. w_e learns after which experts, or near misses of the router, e comes.
//
// Both are learned by temporal differences (Sutton 1988), TD(0): v_{t-1}(e) should have been
// y(e) = (1-g) [e is used at t] + g v_t(e). The error y - v is weighed by 1/sqrt(b v), between the two that a count's
// variance and a logarithm ask for, so that the rarely used, among which the next to leave is found, weigh as much as
// the others. w takes the step of normalised least mean squares (Haykin, Adaptive Filter Theory), smaller over the first
// tokens: before anything is learned the ranking is the mean of the three logarithms.
//
// No randomness and no clock: the worth is a function of the events seen. Nothing allocates after init.
#pragma once

#include <cstdint>
#include <vector>

enum { REUSE_RATES = 3, REUSE_FEATURES = 1 + REUSE_RATES };

struct reuse_predictor {
    int experts = 0;                       // 0: not in use
    uint64_t tokens = 0;                   // events observed
    uint64_t uses = 0;                     // sum of their K
    float shared[REUSE_FEATURES] = {};     // a
    float seen[REUSE_RATES] = {};          // 1 - 2^(-tokens / half-life): what a rate of 1 would have reached by now
    std::vector<float> rates;              // REUSE_RATES x experts: decayed uses per token
    std::vector<float> trace;              // the same at TRACE_HALF_LIFE
    std::vector<float> features, features_before;  // REUSE_FEATURES x experts, of this token and the last
    std::vector<float> inputs, inputs_before, inputs_due;  // u: 2 x experts, of this token, the last, and the one before
    std::vector<float> weights;            // w: 2 x experts rows of `experts`, save the step that is due
    std::vector<float> worth, worth_before;
    std::vector<float> step;               // per expert; times `inputs_due` it is what `weights` still lacks when a token comes
};

void reuse_predictor_init(reuse_predictor & p, int experts);
// Forgets everything; as after init.
void reuse_predictor_reset(reuse_predictor & p);

// One token's experts. `scores` are the router's for all experts, not finite where masked; null: not known.
// Afterwards `worth[e]` holds for every expert.
void reuse_predictor_observe(reuse_predictor & p, const int32_t * ids, int k, const float * scores);
