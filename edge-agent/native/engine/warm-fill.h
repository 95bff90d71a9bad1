// Warm fill: reads experts that others found worth holding into the room that the cache has left, while no request runs.
//
// A list ranks each layer's experts. They are read in the order of their rank, all layers in turn, at the priority of a
// guess (one lane, a piece at a time), and become members when all of their bytes are there: as the least recent ones, so
// that a fill never displaces a member, and whatever is used comes before it. To routing that is an event between two
// tokens, like a resize, and can be recorded (cache_change_log). Fills are neither misses nor hits and are counted by themselves.
//
// The list belongs to whoever holds the engine's mutex; reads under way to the producer of the flash reader, i.e. the thread
// with the request slot, or whoever holds the mutex while no request runs. A request takes over by `warm_fill_yield`,
// which waits for no more than the piece in flight. Experts are verified a part to a step, so that it does not wait for that.
#pragma once

#include "cache-resize.h"
#include "expert-read.h"
#include "expert-verify.h"

struct warm_read {
    int32_t layer = -1, expert = -1;  // layer < 0: free
    expert_digesting digesting;       // of what has arrived, where experts are verified
};

// So many that the lane finds the next one while an expert that has arrived is admitted.
enum { WARM_READS = 4 };

struct warm_fill {
    expert_reads * reads = nullptr;
    const model_info * info = nullptr;
    const model_checksums * checksums = nullptr;  // null: experts are not verified
    std::vector<std::vector<int32_t>> ranked;     // per MoE layer, best first
    size_t rank = 0, layer = 0;                   // the next to look at
    warm_read under_way[WARM_READS];
    uint64_t ticket = 0;                          // lists so far
    engine_status last_failure;
    int64_t failures = 0;                         // experts of this list that could not be read
};

// BAD_ARGUMENT: not one list per MoE layer, an expert that does not exist, one that is there twice. Lists may be short.
engine_status warm_fill_check(const model_info & info, const std::vector<std::vector<int32_t>> & ranked);
void warm_fill_set(warm_fill & warm, const std::vector<std::vector<int32_t>> & ranked);

// Verifies a part of what has arrived or admits it, and asks for more. `skip` says of an expert that somebody else has it in hand. False: nothing is
// under way and nothing is left to ask for. For the producer alone.
bool warm_fill_step(warm_fill & warm, const resizable_cache & cache, engine_totals & totals, bool (*skip)(void *, int layer, int expert), void * data);

// Stops at once and gives back what has not arrived in full; the next step reads it again.
void warm_fill_yield(warm_fill & warm);
