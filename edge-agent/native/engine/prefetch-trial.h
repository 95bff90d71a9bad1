// Whether pre-fetch pays, measured while it runs. Routing never depends on it, so neither does the output.
//
// Tokens are decoded in turns of two, with pre-fetch (A) and without (B), in blocks of ABBA and BAAB by turns: in the
// difference of the two ways within a block a speed that drifts steadily cancels out, and of one that wanders what is left is
// what it changed by from turn to turn. What a missed byte costs is taken from tokens of one turn, which differ in nothing
// else, and the difference is stated at equal misses. The gain is the mean of the blocks' differences without their extremes,
// a fifth on either side; its standard error comes from those that are left (Yuen 1974, winsorized).
//
// A trial goes on until the sign is sure. Where it is not in the end pre-fetch is off: only what surely wins is worth the
// bytes. Such trials, and those that ended barely sure, are repeated sooner; each begins with what those before it found, at a
// quarter of its weight, so that a small gain is found in several that no single one shows.
#pragma once

#include "counters.h"

#include <cmath>

enum {
    TRIAL_TURN = 2,
    TRIAL_BLOCK = 4 * TRIAL_TURN,
    TRIAL_MOST_BLOCKS = 64,
    TRIAL_MOST_TOKENS = TRIAL_BLOCK * TRIAL_MOST_BLOCKS,
};

struct trial_token { double ns, missed_bytes; };

// Share of a token's time that pre-fetch saves, negative where it costs, and its standard error; INFINITY: nothing is known.
struct trial_estimate { double gain = 0, error = INFINITY; };

enum trial_state { TRIAL_WARMING, TRIAL_MEASURING, TRIAL_ON, TRIAL_OFF };

struct prefetch_trial {
    trial_state state = TRIAL_WARMING;
    int64_t tokens = 0;                        // in this state
    int64_t rest = 0;                          // TRIAL_ON, TRIAL_OFF: tokens until the next trial
    trial_token measured[TRIAL_MOST_TOKENS];   // TRIAL_MEASURING: the first `tokens`
    trial_estimate known;                      // by the trials so far
    counter<double> gain, error;               // for other threads: likewise, with the one under way; 0: too few tokens so far
};

// Whether token `i` of a trial is decoded with pre-fetch.
bool prefetch_trial_with(int64_t i);
// Of a trial's first `blocks` blocks; at least four.
trial_estimate prefetch_trial_estimate(const trial_token * tokens, int blocks);

// Whether the next token is decoded with pre-fetch.
bool prefetch_trial_on(const prefetch_trial & trial);
// What is missed has changed: the next trial begins soon, with what is known.
void prefetch_trial_renew(prefetch_trial & trial);
// That token took `ns`, with so many bytes of experts missed, read ahead or not.
void prefetch_trial_add(prefetch_trial & trial, int64_t ns, int64_t missed_bytes);
