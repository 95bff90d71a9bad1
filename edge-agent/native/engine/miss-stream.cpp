#include "miss-stream.h"

#include "layer-route.h"
#include "miss-fetch.h"

#include <algorithm>
#include <cstring>

static const int32_t NO_MISS = -1;

// Matrices that have room at one time at least: some are read while another is multiplied. Each costs the reading of an
// expert of every layer where the cache has to make the room, so no more than a reader has lanes by default.
static const int64_t LEAST_MATRICES = 4;

// Bytes that the layer may still bring in: its capacity and what is granted beyond, without what it holds.
static int64_t room_of(const layer_hook & hook, int layer) {
    const layer_memory & memory = hook.memory->layers[size_t(layer)];
    int64_t room = hook.passing_bytes + (*hook.owner)[layer].cache.capacity * int64_t(memory.expert_bytes);
    for (int e = 0; e < hook.info->experts; e++) {
        for (int p = 0; p < memory.n_places; p++) {
            if (memory.held[size_t(e)] & (1u << p)) room -= int64_t(memory.places[p].bytes);
        }
    }
    return room;
}

// Where what passes would have too little room, members make some, to be read again at the end. There is what is granted
// beyond the capacity, what the capacity is not filled with, and the last matrices of those that enter.
static void make_room(layer_hook & hook, int layer) {
    const layer_memory & memory = hook.memory->layers[size_t(layer)];
    const expert_cache & cache = (*hook.owner)[layer].cache;
    uint64_t largest = 0;
    for (int p = 0; p < memory.n_places; p++) largest = std::max(largest, memory.places[p].bytes);
    const int64_t last = int64_t(memory.places[hook.reads.turns[size_t(layer)].back()].bytes);
    int64_t room = hook.passing_bytes + (cache.capacity - cache.size) * int64_t(memory.expert_bytes);
    for (int e = 0; e < hook.info->experts; e++) {
        if (cache.resident[size_t(e)] && !memory.present[size_t(e)]) room += last;
    }
    for (int e = 0; e < hook.info->experts && room < LEAST_MATRICES * int64_t(largest); e++) {
        if (!cache.resident[size_t(e)] || !memory.present[size_t(e)]) continue;
        expert_memory_release(*hook.memory, layer, e);
        room += last;
    }
}

// The order of the experts, and whose matrices are read.
static void line_up(layer_hook & hook, int layer) {
    miss_stream & s = hook.stream;
    const layer_memory & memory = hook.memory->layers[size_t(layer)];
    const uint8_t * members = (*hook.owner)[layer].cache.resident.data();
    s.count = 0;
    for (const bool present : {true, false}) {
        for (const bool member : {present, !present}) {
            for (int e = 0; e < hook.info->experts; e++) {
                if (bool(memory.present[size_t(e)]) != present || bool(members[e]) != member) continue;
                if (hook.needed[size_t(e)] || (member && !present)) s.order[size_t(s.count++)] = e;
            }
        }
    }
    for (int i = 0; i < s.count; i++) {
        const int e = s.order[size_t(i)];
        s.reads[size_t(i)] = !memory.present[size_t(e)];
        s.stays[size_t(i)] = members[e];
        s.missed[size_t(i)] = NO_MISS;
        if (!s.reads[size_t(i)]) continue;
        for (int p = 0; p < memory.n_places; p++) expert_read_set(hook.reads, layer, e, p);
    }
}

static int32_t place_of(const layer_hook & hook, int64_t item) {
    return hook.reads.turns[size_t(hook.stream.layer)][size_t(item / hook.stream.count)];
}

// Asks for all that there is room for.
static void read_ahead(layer_hook & hook) {
    miss_stream & s = hook.stream;
    const int64_t items = int64_t(s.count) * int64_t(hook.reads.turns[size_t(s.layer)].size());
    bool asked = false;
    for (; s.next_read < items; s.next_read++) {
        const size_t i = size_t(s.next_read % s.count);
        if (!s.reads[i]) continue;
        const int32_t place = place_of(hook, s.next_read);
        const int64_t bytes = int64_t(hook.memory->layers[size_t(s.layer)].places[place].bytes);
        if (bytes > s.room) break;
        s.room -= bytes;
        expert_memory_hold_part(*hook.memory, s.layer, s.order[i], place);
        flash_reader_start(*hook.reader, expert_read_part(hook.reads, s.layer, s.order[i], place), FLASH_DEMAND);
        asked = true;
    }
    if (asked) flash_reader_ring(*hook.reader);
}

void miss_stream_begin(layer_hook & hook, int layer, int n) {
    miss_stream & s = hook.stream;
    prefetch_drop(hook.prefetch);  // what is staged would have to be told apart, and is little
    make_room(hook, layer);
    s.room = room_of(hook, layer);
    line_up(hook, layer);
    const int64_t start = now_ns();
    for (int i = 0; i < n; i++) {
        miss_event & m = hook.events[size_t(i)];
        m = miss_event();
        m.bytes = int64_t(hook.memory->layers[size_t(layer)].expert_bytes);
        m.start_ns = m.end_ns = start;
        s.missed[size_t(std::find(s.order.begin(), s.order.begin() + s.count, hook.missed[size_t(i)]) - s.order.begin())] = i;
    }
    s.layer = layer;
    s.misses = n;
    s.next_use = s.next_read = 0;
    read_ahead(hook);
}

static void wait_for(layer_hook & hook, size_t i, const flash_request & part) {
    if (flash_request_settled(part)) return;
    const int64_t before = now_ns();
    flash_reader_wait(*hook.reader, part);
    const int64_t waited = now_ns() - before;
    hook.outcome.stall_ns += waited;
    if (hook.stream.missed[i] != NO_MISS) hook.events[size_t(hook.stream.missed[i])].stall_ns += waited;
}

// One expert's matrix: waits for it, multiplies by it, and gives it back where its expert does not stay.
static engine_status use_next(layer_hook & hook, const ggml_tensor * node) {
    miss_stream & s = hook.stream;
    const size_t i = size_t(s.next_use % s.count);
    const int32_t place = place_of(hook, s.next_use), e = s.order[i];
    if (s.reads[i]) {
        if (s.next_read <= s.next_use) return status_error(ENGINE_INTERNAL, "%s: no room to read a matrix", node->name);
        const flash_request & part = expert_read_part(hook.reads, s.layer, e, place);
        wait_for(hook, i, part);
        const engine_status status = flash_request_status(part);
        if (failed(status)) return status;
    }
    if (hook.needed[size_t(e)]) {
        const engine_status status = expert_multiply_run(hook.multiply, node, e);
        if (failed(status)) return status;
    }
    if (!s.stays[i]) {
        expert_memory_release_part(*hook.memory, s.layer, e, place);
        s.room += int64_t(hook.memory->layers[size_t(s.layer)].places[place].bytes);
    }
    s.next_use++;
    read_ahead(hook);
    return {};
}

void miss_stream_before(layer_hook & hook, ggml_tensor * node) {
    miss_stream & s = hook.stream;
    if (node->op != GGML_OP_MUL_MAT_ID) return;
    const int place = expert_reads_place(hook.reads, s.layer, node->src[0]);
    if (place < 0) return;
    const std::vector<int32_t> & turns = hook.reads.turns[size_t(s.layer)];
    const int64_t turn = std::find(turns.begin(), turns.end(), place) - turns.begin();
    expert_multiply_replace(hook.multiply, node);
    if (failed(hook.error) || hook.cancelled.load(std::memory_order_relaxed)) return;
    engine_status status;
    if (s.next_use != turn * s.count) status = status_error(ENGINE_INTERNAL, "%s: not the multiplication that was expected", node->name);
    if (!failed(status)) status = expert_multiply_begin(hook.multiply, node);
    // What an expert that is left out would have given is multiplied by a weight of zero, so it has to be a number.
    if (!failed(status) && layer_drops_experts(hook, s.layer)) memset(node->data, 0, ggml_nbytes(node));
    while (!failed(status) && s.next_use < (turn + 1) * s.count && !hook.cancelled.load(std::memory_order_relaxed)) status = use_next(hook, node);
    if (failed(status)) layer_stop_with(hook, status);
}

void miss_stream_after(layer_hook & hook) {
    miss_stream & s = hook.stream;
    if (miss_stream_under_way(hook) && s.next_use == int64_t(s.count) * int64_t(hook.reads.turns[size_t(s.layer)].size())) miss_stream_finish(hook);
}

void miss_stream_finish(layer_hook & hook) {
    miss_stream & s = hook.stream;
    if (!miss_stream_under_way(hook)) return;
    const int layer = s.layer;
    const int64_t expert_bytes = int64_t(hook.memory->layers[size_t(layer)].expert_bytes);
    for (int i = 0; i < s.count; i++) {
        const int e = s.order[size_t(i)];
        bool arrived = true;
        if (s.reads[size_t(i)]) {
            expert_read_wait(hook.reads, layer, e);
            arrived = expert_read_done(hook.reads, layer, e) && !failed(expert_read_status(hook.reads, layer, e));
            if (arrived) hook.outcome.flash_bytes += expert_bytes;
        }
        if (s.stays[size_t(i)] && arrived) expert_memory_mark(*hook.memory, layer, e);
        else expert_memory_release(*hook.memory, layer, e);
        if (s.stays[size_t(i)] && !arrived) expert_cache_forget((*hook.owner)[layer].cache, e);
        if (s.missed[size_t(i)] != NO_MISS) miss_event_gather(hook, layer, s.missed[size_t(i)]);
    }
    for (int i = 0; hook.ring && i < s.misses; i++) miss_event_report(hook, layer, i);
    s.layer = -1;
}
