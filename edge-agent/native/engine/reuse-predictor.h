// How soon each expert of one layer will be used again, learned while the layer runs: what the adaptive eviction policy
// ranks members by.
//
// The worth of expert e after the layer's token t is the discounted number of its uses to come,
//
//   v_t(e) = (1-g) * sum over s > t of g^(s-t-1) * 0.8^(uses of e between t and s) * [e is used at s]
//
// The sooner members leave, the nearer is the future that matters: g = 1 - 1/H for a horizon H of 3 capacity / K tokens. An
// eviction is regretted once, at the first use, hence 0.8: 1 would count uses, 0 look at the first alone. v is predicted as  b * exp(a . f(e) + w_e . u)  where b = K/E is the mean of all,
//   f(e)  a constant, and the logarithm of how often e was used lately, against b, at three half-lives: what LRU, LFU and
//         LFRU know, in one scale. a is the layer's own, so each layer finds how much recency and frequency count;
//   u     what is going on: for each expert the router's softmax probability for this token (where scores are not known,
//         1/K for the K used), for the token before, and for this token in the MoE layer below; and how often it was used
//         in the last few tokens (half-life 4); all as deviations of square roots. w_e learns after which experts, or near
//         misses of the router, e comes.
//
// Both are learned by temporal differences (Sutton 1988), TD(0): v_{t-1}(e) should have been
// y(e) = (1-g) [e is used at t] + g v_t(e), with 0.8 g for g where e is used at t. The error y - v is weighed by 1/sqrt(b v), between the two that a count's
// variance and a logarithm ask for, so that the rarely used, among which the next to leave is found, weigh as much as
// the others. w takes the step of normalised least mean squares (Haykin, Adaptive Filter Theory), smaller over the first
// tokens: before anything is learned the ranking is the mean of the three logarithms.
//
// A layer that begins with a warm list knows something of its experts before its first token: each that the list names is
// taken to have been used, for EXPECTED_TOKENS tokens, as often as experts of its place usually are; those not named share
// what is left. Else the first victims would be chosen by next to nothing, and the list's own experts, which were not used yet,
// would go first. It is forgotten as uses are: by half in 8 tokens where 8 count.
//
// No randomness and no clock: the worth is a function of the events seen. Nothing allocates after init.
#pragma once

#include "line-allocator.h"

#include <cstdint>
#include <vector>

enum { REUSE_RATES = 3, REUSE_INPUTS = 4 };
typedef std::vector<float, line_allocator<float>> reuse_row;

struct reuse_predictor {
    int experts = 0;                       // 0: not in use
    int width = 0;                         // of a row of floats, one to an expert: what fills it up takes part in nothing
    uint64_t tokens = 0;                   // events observed
    uint64_t uses = 0;                     // sum of their K
    float shared[1 + REUSE_RATES] = {};    // a
    float seen[REUSE_RATES] = {};          // 1 - 2^(-tokens / half-life): what a rate of 1 would have reached by now
    reuse_row used;                        // 1 for an expert that this token uses, else 0
    reuse_row rates;                       // REUSE_RATES rows: decayed uses per token
    reuse_row trace;                       // the same at TRACE_HALF_LIFE
    reuse_row features, features_before;   // REUSE_RATES rows, of this token and the last: f without its constant
    reuse_row inputs, inputs_before, inputs_due;  // u: REUSE_INPUTS rows, of this token, the last, and the one before
    float norm = 1;                        // 1 + the square of the length of `inputs`
    reuse_row weights;                     // w: REUSE_INPUTS x width rows, save the step that is due
    reuse_row worth, worth_before;
    reuse_row step;                        // times `inputs_due` it is what `weights` still lacks when a token comes
    std::vector<int32_t> expected;         // by a warm list, best first; until the first token
};

void reuse_predictor_init(reuse_predictor & p, int experts);
// Forgets everything; as after init.
void reuse_predictor_reset(reuse_predictor & p);

// `expert` is the next of a warm list. Tells nothing after the first token.
void reuse_predictor_expect(reuse_predictor & p, int expert);

// What the routers said of one token: scores of all experts, not finite where masked.
struct reuse_scores {
    const float * here = nullptr;   // of this layer; null: not known
    const float * below = nullptr;  // of the MoE layer before this one; null: not known, or there is none
    // The inputs that the two make, whole_lanes long, for whoever has made them already; null: made here.
    const float * here_inputs = nullptr, * below_inputs = nullptr;
};
// The inputs of scores[experts]: the scaled deviation of the square root of their softmax. `out` is whole_lanes(experts) long. False, and
// `out` means nothing, where none is finite.
bool reuse_inputs_of(const float * scores, int experts, float * out);

// One token's experts in a cache of `capacity`. Afterwards `worth[e]` holds for every expert.
void reuse_predictor_observe(reuse_predictor & p, const int32_t * ids, int k, const reuse_scores & scores, int capacity);
