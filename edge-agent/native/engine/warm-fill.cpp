#include "warm-fill.h"

#include <algorithm>

// Hashed by one step: half a millisecond with SHA instructions, three without.
static const uint64_t VERIFIED_BYTES = 1 << 20;

engine_status warm_fill_check(const model_info & info, const std::vector<std::vector<int32_t>> & ranked) {
    if (ranked.size() != info.moe_layers.size()) {
        return status_error(ENGINE_BAD_ARGUMENT, "warm: expected one list per MoE layer (%zu), found %zu", info.moe_layers.size(), ranked.size());
    }
    std::vector<uint8_t> seen;
    for (size_t l = 0; l < ranked.size(); l++) {
        seen.assign(size_t(info.experts), 0);
        for (size_t i = 0; i < ranked[l].size(); i++) {
            const int32_t e = ranked[l][i];
            if (e < 0 || e >= info.experts) {
                return status_error(ENGINE_BAD_ARGUMENT, "warm: entry %zu of blk.%d: expected an expert from 0 to %d, found %d", i,
                                    info.moe_layers[l], info.experts - 1, e);
            }
            if (seen[size_t(e)]) {
                return status_error(ENGINE_BAD_ARGUMENT, "warm: entry %zu of blk.%d: expert %d is there twice", i, info.moe_layers[l], e);
            }
            seen[size_t(e)] = 1;
        }
    }
    return {};
}

void warm_fill_set(warm_fill & warm, const std::vector<std::vector<int32_t>> & ranked) {
    warm.ranked = ranked;
    warm.rank = warm.layer = 0;
    warm.last_failure = engine_status();
    warm.failures = 0;
    warm.ticket++;
}

static bool is_under_way(const warm_fill & warm, int layer, int expert) {
    return std::any_of(std::begin(warm.under_way), std::end(warm.under_way), [&](const warm_read & r) { return r.layer == layer && r.expert == expert; });
}

static int room(const warm_fill & warm, const expert_cache & cache, int layer) {
    const auto reading = std::count_if(std::begin(warm.under_way), std::end(warm.under_way), [&](const warm_read & r) { return r.layer == layer; });
    return cache.capacity - cache.size - int(reading);
}

static void admit(const resizable_cache & cache, int layer, int expert, int64_t bytes_read, engine_totals & totals) {
    layer_state & state = (*cache.layers)[layer];
    if (cache.log) cache_change_log_add(*cache.log, {layer, int32_t(state.cache.clock), state.cache.capacity, expert});
    expert_cache_warm(state.cache, expert);
    expert_memory_mark(*cache.memory, layer, expert);
    state.tally.warm_fills.add(1);
    state.tally.resident.set(state.cache.size);
    totals.warm_bytes.add(bytes_read);
}

// All that will arrive of it has arrived. False: it is not verified yet, and the budget of bytes to hash is used up.
static bool finish(warm_fill & warm, const resizable_cache & cache, warm_read & read, engine_totals & totals, uint64_t & budget) {
    const int layer = read.layer, expert = read.expert;
    engine_status status = expert_read_status(*warm.reads, layer, expert);
    const bool arrived = !failed(status) && expert_read_done(*warm.reads, layer, expert);
    if (arrived && warm.checksums) {
        if (!expert_verify_some(read.digesting, *warm.checksums, *cache.memory, *warm.info, layer, expert, budget, status)) return false;
    }
    read = warm_read();
    const expert_cache & members = (*cache.layers)[layer].cache;
    if (arrived && !failed(status) && members.size < members.capacity && !members.resident[size_t(expert)]) {
        admit(cache, layer, expert, int64_t(cache.memory->layers[size_t(layer)].expert_bytes), totals);
        return true;
    }
    // A fill that fails costs nothing but itself: should the expert be needed, a demand will say so.
    if (failed(status)) {
        warm.last_failure = status;
        warm.failures++;
    }
    expert_memory_release(*cache.memory, layer, expert);
    return true;
}

static void ask(warm_fill & warm, warm_read & read, int layer, int expert) {
    read = {layer, expert};
    expert_read_begin(*warm.reads, layer, expert);
    for (const int32_t place : warm.reads->turns[size_t(layer)]) {
        flash_reader_start(*warm.reads->reader, expert_read_part(*warm.reads, layer, expert, place), FLASH_SPECULATIVE);
    }
}

// The next expert that there is room for, into `layer` and `expert`; false at the end of the list.
static bool next_wanted(warm_fill & warm, const resizable_cache & cache, int & layer, int & expert) {
    size_t longest = 0;
    for (const auto & list : warm.ranked) longest = std::max(longest, list.size());
    for (; warm.rank < longest; warm.rank++, warm.layer = 0) {
        while (warm.layer < warm.ranked.size()) {
            layer = int(warm.layer++);
            if (warm.rank >= warm.ranked[size_t(layer)].size()) continue;
            expert = warm.ranked[size_t(layer)][warm.rank];
            const expert_cache & members = (*cache.layers)[layer].cache;
            if (!members.resident[size_t(expert)] && !is_under_way(warm, layer, expert) && room(warm, members, layer) > 0) return true;
        }
    }
    return false;
}

bool warm_fill_step(warm_fill & warm, const resizable_cache & cache, engine_totals & totals, bool (*skip)(void *, int layer, int expert), void * data) {
    bool asked = false, busy = false;
    uint64_t budget = VERIFIED_BYTES;
    for (warm_read & read : warm.under_way) {
        const bool settled = read.layer < 0 || expert_read_settled(*warm.reads, read.layer, read.expert);
        if (!settled || (read.layer >= 0 && !finish(warm, cache, read, totals, budget))) {
            busy = true;
            continue;
        }
        int layer, expert;
        while (read.layer < 0 && next_wanted(warm, cache, layer, expert)) {
            if (skip(data, layer, expert)) continue;
            // What an engine that keeps all has read before needs no reading.
            if (cache.memory->layers[size_t(layer)].present[size_t(expert)]) admit(cache, layer, expert, 0, totals);
            else ask(warm, read, layer, expert);
        }
        asked |= read.layer >= 0;
    }
    if (asked) flash_reader_ring(*warm.reads->reader);
    return asked || busy;
}

void warm_fill_yield(warm_fill & warm) {
    bool any = false;
    for (const warm_read & read : warm.under_way) {
        if (read.layer < 0) continue;
        expert_read_withdraw(*warm.reads, read.layer, read.expert);
        any = true;
    }
    if (!any) return;
    for (warm_read & read : warm.under_way) {
        if (read.layer < 0) continue;
        expert_read_wait(*warm.reads, read.layer, read.expert);
        expert_memory_release(*warm.reads->memory, read.layer, read.expert);
        read = warm_read();
    }
    flash_reader_forget(*warm.reads->reader, FLASH_SPECULATIVE);
    // The list is looked at from its beginning again: members are passed over at once.
    warm.rank = warm.layer = 0;
}
