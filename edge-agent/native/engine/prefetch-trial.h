// Whether pre-fetch pays, measured while it runs: tokens are decoded with and without in short turns, their times are
// compared at equal misses (one line of time over misses for both, a step between them), and what won stays on until the
// next trial. Routing never depends on it, so neither does the output.
#pragma once

#include "counters.h"

// Sums over the tokens of one way.
struct trial_side { double tokens = 0, misses = 0, ns = 0, misses_squared = 0, ns_squared = 0, misses_ns = 0; };

enum trial_state { TRIAL_WARMING, TRIAL_MEASURING, TRIAL_ON, TRIAL_OFF };

struct prefetch_trial {
    trial_state state = TRIAL_WARMING;
    int64_t tokens = 0;              // in this state
    trial_side with, without;
    counter<double> gain;            // share of a token's time that pre-fetch saved, as last measured; negative: it cost
};

// Whether the next token is decoded with pre-fetch.
bool prefetch_trial_on(const prefetch_trial & trial);
// That token took `ns`, with so many misses.
void prefetch_trial_add(prefetch_trial & trial, int64_t ns, int64_t misses);
