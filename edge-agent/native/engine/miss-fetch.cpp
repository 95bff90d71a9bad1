#include "miss-fetch.h"

#include <algorithm>

// In `needed`: selected, but a slice of it did not arrive.
enum { READ_FAILED = 2 };

// Adds the slices of one expert; returns how many.
static int slice_expert(const layer_memory & memory, uint64_t e, int32_t tag, flash_slice * out) {
    int n = 0;
    for (int p = 0; p < memory.n_places; p++) {
        const expert_place & place = memory.places[p];
        n += flash_slices(place.file_offset + e * place.bytes, place.bytes, place.base + e * place.bytes, tag, place.tensor,
                          out + n);
    }
    return n;
}

// Times and read counts of the misses, from their slices.
static void gather_slices(layer_hook & hook, int count, int64_t start) {
    for (int s = 0; s < count; s++) {
        const flash_slice & slice = hook.slices[size_t(s)];
        miss_event & m = hook.events[size_t(slice.tag)];
        const int64_t wait = slice.begin_ns - start;
        m.queue_wait_ns = m.reads == 0 ? wait : std::min(m.queue_wait_ns, wait);
        m.end_ns = std::max(m.end_ns, slice.end_ns);
        m.reads += slice.reads;
        hook.outcome.flash_reads += slice.reads;
        hook.totals->read_micros_log2[read_time_bucket(slice.end_ns - slice.begin_ns)].add(1);
        if (slice.error) hook.needed[size_t(hook.missed[size_t(slice.tag)])] = READ_FAILED;
        else hook.outcome.flash_bytes += int64_t(slice.bytes);
    }
}

// The compute thread stood still until the last read was done. Each read is charged with the time it added beyond
// those that ended before it, so that the charges add up to the standstill.
static void charge_stalls(layer_hook & hook, int n) {
    for (int i = 0; i < n; i++) hook.order[size_t(i)] = i;
    const miss_event * events = hook.events.data();
    std::sort(hook.order.begin(), hook.order.begin() + n, [events](int32_t a, int32_t b) {
        return events[a].end_ns < events[b].end_ns;
    });
    for (int i = 0; i < n; i++) {
        miss_event & m = hook.events[size_t(hook.order[size_t(i)])];
        const int64_t before = i == 0 ? m.start_ns : hook.events[size_t(hook.order[size_t(i) - 1])].end_ns;
        m.stall_ns = m.end_ns - before;
        hook.outcome.stall_ns += m.stall_ns;
    }
}

// Before anything uses them. What is wrong counts as not read.
static void verify_arrived(layer_hook & hook, int layer, int n) {
    for (int i = 0; i < n && hook.checksums; i++) {
        const int32_t e = hook.missed[size_t(i)];
        if (hook.events[size_t(i)].reads == 0 || hook.needed[size_t(e)] == READ_FAILED) continue;
        const engine_status status = expert_verify(*hook.checksums, *hook.memory, *hook.info, layer, e);
        if (!failed(status)) continue;
        hook.needed[size_t(e)] = READ_FAILED;
        if (!failed(hook.error)) hook.error = status;
    }
}

void miss_fetch_read(layer_hook & hook, int layer, int n) {
    const layer_memory & memory = hook.memory->layers[size_t(layer)];
    const int64_t start = now_ns();
    int count = 0;
    for (int i = 0; i < n; i++) {
        miss_event & m = hook.events[size_t(i)];
        m = miss_event();
        m.bytes = int64_t(memory.expert_bytes);
        m.start_ns = m.end_ns = start;
        const int32_t e = hook.missed[size_t(i)];
        if (!memory.present[size_t(e)]) count += slice_expert(memory, uint64_t(e), i, hook.slices.data() + count);
    }
    const engine_status status = flash_reader_read(*hook.reader, hook.slices.data(), count);
    if (failed(status) && !failed(hook.error)) hook.error = status;
    gather_slices(hook, count, start);
    verify_arrived(hook, layer, n);
    for (int i = 0; i < n; i++) {
        const int e = hook.missed[size_t(i)];
        if (hook.needed[size_t(e)] != READ_FAILED) expert_memory_mark(*hook.memory, layer, e);
    }
    // Only now: a release spares the pages that an expert shares with present neighbours, those just read included.
    for (int i = 0; i < n; i++) {
        const int e = hook.missed[size_t(i)];
        if (hook.needed[size_t(e)] != READ_FAILED) continue;
        expert_cache_forget((*hook.layers)[layer].cache, e);
        expert_memory_release(*hook.memory, layer, e);
    }
    charge_stalls(hook, n);
}

void miss_fetch_report(layer_hook & hook, int layer, int n) {
    for (int i = 0; i < n; i++) {
        miss_event & m = hook.events[size_t(i)];
        hook.totals->misses.add(1);
        m.miss_number = hook.totals->misses.get();
        m.step = hook.step;
        m.layer = hook.info->moe_layers[size_t(layer)];
        m.expert = hook.missed[size_t(i)];
        m.evicted_expert = hook.victim[size_t(m.expert)];
        m.prefetch = 0;
        m.lambda = hook.policies[size_t(layer)].lambda;
        m.generation = hook.generation;
        if (!event_ring_push(*hook.ring, m)) hook.totals->events_dropped.add(1);
    }
}
