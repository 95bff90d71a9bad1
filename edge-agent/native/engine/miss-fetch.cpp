#include "miss-fetch.h"

#include "layer-route.h"

#include <algorithm>
#include <numeric>

// Asks for what is missing, matrix by matrix in the order of the graph.
static void start_reads(layer_hook & hook, int layer, int n) {
    for (const int32_t place : hook.reads.turns[size_t(layer)]) {
        for (int i = 0; i < n; i++) {
            const int e = hook.missed[size_t(i)];
            if (hook.fetch.reading[size_t(i)]) flash_reader_start(*hook.reader, expert_read_part(hook.reads, layer, e, place), FLASH_DEMAND);
        }
    }
    flash_reader_ring(*hook.reader);
}

void miss_fetch_begin(layer_hook & hook, int layer, int n) {
    const layer_memory & memory = hook.memory->layers[size_t(layer)];
    const int64_t start = now_ns();
    bool reading = false;
    for (int i = 0; i < n; i++) {
        const int e = hook.missed[size_t(i)];
        miss_event & m = hook.events[size_t(i)];
        m = miss_event();
        m.bytes = int64_t(memory.expert_bytes);
        m.start_ns = m.end_ns = start;
        hook.fetch.reading[size_t(i)] = !memory.present[size_t(e)];
        if (!hook.fetch.reading[size_t(i)]) continue;
        m.prefetch = prefetch_claim(hook.prefetch, layer, e, m.start_ns);
        if (m.prefetch == PREFETCH_NONE) expert_read_begin(hook.reads, layer, e);
        reading = true;
    }
    hook.fetch.layer = layer;
    hook.fetch.count = n;
    hook.fetch.turn = 0;
    if (reading) start_reads(hook, layer, n);
    // A digest covers all matrices of an expert, and none may be used before it has been checked.
    if (!reading || hook.checksums) miss_fetch_finish(hook);
}

// The compute thread stands still for each part in turn, so the charges add up to the standstill.
static void wait_for(layer_hook & hook, int i, int32_t place) {
    const flash_request & part = expert_read_part(hook.reads, hook.fetch.layer, hook.missed[size_t(i)], place);
    if (!hook.fetch.reading[size_t(i)] || flash_request_settled(part)) return;
    const int64_t before = now_ns();
    flash_reader_wait(*hook.reader, part);
    const int64_t waited = now_ns() - before;
    hook.events[size_t(i)].stall_ns += waited;
    hook.outcome.stall_ns += waited;
}

static void wait_until(layer_hook & hook, size_t turn) {
    for (; hook.fetch.turn < turn; hook.fetch.turn++) {
        const int32_t place = hook.reads.turns[size_t(hook.fetch.layer)][hook.fetch.turn];
        for (int i = 0; i < hook.fetch.count; i++) wait_for(hook, i, place);
    }
}

// The miss that is still being read of which `expert`'s matrix is, -1: it is there.
static int missing_of(layer_hook & hook, int expert, int32_t place) {
    for (int i = 0; i < hook.fetch.count; i++) {
        if (hook.missed[size_t(i)] != expert || !hook.fetch.reading[size_t(i)]) continue;
        return flash_request_settled(expert_read_part(hook.reads, hook.fetch.layer, expert, place)) ? -1 : i;
    }
    return -1;
}

// Multiplies by each matrix as soon as it is there.
static engine_status multiply_as_they_come(layer_hook & hook, const ggml_tensor * node, int32_t place) {
    const int32_t * ids = static_cast<const int32_t *>(node->src[2]->data);
    int32_t left[MULTIPLY_ROWS], ready[MULTIPLY_ROWS];
    int n_left = int(node->src[2]->ne[0]);
    std::iota(left, left + n_left, 0);
    while (n_left > 0) {
        int n_ready = 0, still = 0, next = -1;
        for (int i = 0; i < n_left; i++) {
            const int missing = missing_of(hook, ids[left[i]], place);
            if (missing < 0) ready[n_ready++] = left[i];
            else left[still++] = left[i];
            if (missing >= 0 && next < 0) next = missing;
        }
        n_left = still;
        const engine_status status = n_ready > 0 ? expert_multiply_slots(hook.multiply, node, ready, n_ready) : engine_status();
        if (failed(status)) return status;
        if (next >= 0) wait_for(hook, next, place);
    }
    return {};
}

// Of a node of one token. Of several tokens the rows of an expert would be multiplied by another kernel than all at once.
static bool has_to_wait(layer_hook & hook, const ggml_tensor * node, int32_t place) {
    const ggml_tensor & ids = *node->src[2];
    if (ids.ne[1] != 1 || ids.ne[0] > MULTIPLY_ROWS) return false;
    for (int i = 0; i < hook.fetch.count; i++) {
        if (missing_of(hook, hook.missed[size_t(i)], place) >= 0) return true;
    }
    return false;
}

void miss_fetch_before(layer_hook & hook, ggml_tensor * node) {
    if (node->op != GGML_OP_MUL_MAT_ID) return;
    const std::vector<int32_t> & turns = hook.reads.turns[size_t(hook.fetch.layer)];
    const auto at = std::find(turns.begin(), turns.end(), expert_reads_place(hook.reads, hook.fetch.layer, node->src[0]));
    if (at == turns.end()) return;
    const size_t turn = size_t(at - turns.begin());
    wait_until(hook, turn);
    if (hook.fetch.turn == turn && has_to_wait(hook, node, *at)) {
        const engine_status status = multiply_as_they_come(hook, node, *at);
        if (failed(status)) layer_stop_with(hook, status);
        expert_multiply_replace(hook.multiply, node);
    }
    wait_until(hook, turn + 1);
    if (!hook.multiply.replaced && hook.fetch.turn == turns.size()) miss_fetch_finish(hook);
}

void miss_fetch_after(layer_hook & hook) {
    if (miss_fetch_under_way(hook) && hook.fetch.turn == hook.reads.turns[size_t(hook.fetch.layer)].size()) miss_fetch_finish(hook);
}

void miss_event_gather(layer_hook & hook, int layer, int i) {
    miss_event & m = hook.events[size_t(i)];
    int64_t begin = INT64_MAX;
    for (const int32_t place : hook.reads.turns[size_t(layer)]) {
        const flash_request & part = expert_read_part(hook.reads, layer, hook.missed[size_t(i)], place);
        begin = std::min(begin, part.begin_ns.load());
        m.end_ns = std::max(m.end_ns, part.end_ns.load());
        m.reads += part.reads.load();
    }
    m.queue_wait_ns = std::max<int64_t>(0, begin - m.start_ns);
    hook.outcome.flash_reads += m.reads;
}

void miss_event_report(layer_hook & hook, int layer, int i) {
    miss_event & m = hook.events[size_t(i)];
    hook.totals->misses.add(1);
    m.miss_number = hook.totals->misses.get();
    m.step = hook.step;
    m.layer = hook.info->moe_layers[size_t(layer)];
    m.expert = hook.missed[size_t(i)];
    m.evicted_expert = hook.victim[size_t(m.expert)];
    m.lambda = hook.policies[size_t(layer)].lambda;
    m.generation = hook.generation;
    if (!event_ring_push(*hook.ring, m)) hook.totals->events_dropped.add(1);
}

static engine_status read_again(layer_hook & hook, int layer, int e) {
    expert_read_begin(hook.reads, layer, e);
    for (const int32_t place : hook.reads.turns[size_t(layer)]) {
        flash_reader_start(*hook.reader, expert_read_part(hook.reads, layer, e, place), FLASH_DEMAND);
    }
    flash_reader_ring(*hook.reader);
    expert_read_wait(hook.reads, layer, e);
    return expert_read_status(hook.reads, layer, e);
}

// All bytes of a missing expert have arrived, or will not. Returns what is wrong with them. What does not
// match its checksum counts as not read.
static engine_status arrive(layer_hook & hook, int layer, int i) {
    if (!hook.fetch.reading[size_t(i)]) return {};
    engine_status status = expert_read_status(hook.reads, layer, hook.missed[size_t(i)]);
    // Only a demand may fail a request.
    if (failed(status) && hook.events[size_t(i)].prefetch != PREFETCH_NONE) status = read_again(hook, layer, hook.missed[size_t(i)]);
    miss_event_gather(hook, layer, i);
    if (!failed(status) && hook.checksums) status = expert_verify(*hook.checksums, *hook.memory, *hook.info, layer, hook.missed[size_t(i)]);
    if (!failed(status)) hook.outcome.flash_bytes += hook.events[size_t(i)].bytes;
    return status;
}

void miss_fetch_finish(layer_hook & hook) {
    if (!miss_fetch_under_way(hook)) return;
    const int layer = hook.fetch.layer;
    wait_until(hook, hook.reads.turns[size_t(layer)].size());
    for (int i = 0; i < hook.fetch.count; i++) {
        const int e = hook.missed[size_t(i)];
        const engine_status status = arrive(hook, layer, i);
        if (failed(status)) {
            if (!failed(hook.error)) hook.error = status;
            expert_cache_forget((*hook.layers)[layer].cache, e);
            expert_memory_release(*hook.memory, layer, e);
        } else {
            expert_memory_mark(*hook.memory, layer, e);
        }
        if (hook.ring) miss_event_report(hook, layer, i);
    }
    hook.fetch.layer = -1;
}
