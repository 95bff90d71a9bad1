// Speculative pre-fetch: while a layer is computed, reads the experts that a later layer is likely to miss, on idle lanes
// and behind every demand. Part of a pass of the layer hook.
//
// What is read waits in a staging slot: in memory, but no member of the logical cache, so routing stays a pure function
// of the routing sequence. A selected expert leaves its slot and is counted as the miss it is, `ready` if all of it was
// there and `late` if some was. When a layer has been routed, guesses that were wrong stop being read; what has arrived
// of them stays until its slot is needed, since a guess that was wrong for this token is often right for the next. Slots
// are the bound: a guess never displaces a member, nor another guess for a layer still to come.
#pragma once

#include "expert-read.h"
#include "prefetch-trial.h"
#include "forecast-map.h"

#include <algorithm>

struct staging_slot {
    int32_t layer = -1, expert = -1;      // layer < 0: free
    int64_t asked_ns = 0;
    uint64_t guessed = 0;                 // pass of the last guess of it
};

// Of one layer, over decoded tokens. `absent` counts the misses of tokens for which there were guesses.
struct prefetch_tally {
    counter<int64_t> guesses, right, absent, asked, ready, late, wasted_bytes;
};

// How often guesses of one layer were right, by how far they were foretold to lie from being selected; learnt as it runs,
// from every guess, read or not.
enum { MARGIN_BINS = 32 };
struct guess_record { float right[MARGIN_BINS], all[MARGIN_BINS]; };

// What the layer to come will be routed by: experts that are members or among the `top_j` best get `bonus`, of a `range`
// of scores that is usual.
struct guess_terms {
    const uint8_t * resident = nullptr;
    double bonus = 0, range = 0;
    int top_j = 0;
};

struct prefetcher {
    expert_reads * reads = nullptr;
    router_forecast forecast;
    prefetch_trial trial;
    engine_prefetch mode = PREFETCH_OFF;
    bool active = false;                  // guesses are made in this pass
    counter<int32_t> shown_active;        // the same, for other threads
    std::vector<staging_slot> slots;      // none: no pre-fetch at all
    std::unique_ptr<prefetch_tally[]> tallies;  // per MoE layer
    std::vector<int32_t> guesses;         // of the layer to come, likeliest first
    std::vector<uint8_t> bins;            // of the guesses, by margin
    std::vector<guess_record> records;    // per MoE layer
    int top_k = 0, most_guesses = 0;
    int count = 0;                        // how many of them there are
    int guessed_layer = -1;               // whose they are; -1: nobody's
    uint64_t pass = 0;
    forecast_map map;                     // empty: the routers themselves foretell
    std::vector<float> input;             // of the router seen last, then the other features of its layer
    std::vector<float> previous;          // layers x experts: scores of the token before
    bool has_input = false;
    std::vector<float> scores, ranked;    // scratch, one per expert
};

// While one layer is computed there is time to read a part of an expert; whole ones serve better as members of the cache.
inline int prefetch_slots(int top_k) { return std::max(1, top_k / 2); }

// All slots, were they full of the largest experts.
int64_t prefetch_staging_bytes(const prefetcher & p);

// `most_guesses` for a layer; `slots` experts in all, possibly none.
void prefetch_init(prefetcher & p, expert_reads & reads, int top_k, int slots);
// After the look pass: takes the map beside the model, where there is one for it.
void prefetch_open(prefetcher & p, const std::string & model_path);

// Before each pass.
void prefetch_begin(prefetcher & p);

// A selected expert that is no member: says how much of it is there, starts what is not, and gives up its slot. With
// PREFETCH_NONE nothing was done.
prefetch_outcome prefetch_claim(prefetcher & p, int layer, int expert, int64_t & asked_ns);

// `layer` has been routed and misses these: counts what was guessed, and takes every guess off offer.
void prefetch_settle(prefetcher & p, int layer, const int32_t * missed, int n);

// Keeps the router's input of the layer whose scores the graph has just computed.
void prefetch_see(prefetcher & p, const ggml_tensor * scores);
// That layer chose these, best first, by its scores z.
void prefetch_note(prefetcher & p, int layer, const float * z, const int32_t * selected, int k);
// Foretells from it what `layer` will miss, and starts to read what is likely enough.
void prefetch_guess(prefetcher & p, int layer, const guess_terms & terms);

// Takes everything off offer; what has arrived stays.
void prefetch_pause(prefetcher & p);
// Waits for what is in flight and gives all of it back.
void prefetch_drop(prefetcher & p);

bool prefetch_holds(const prefetcher & p, int layer, int expert);
