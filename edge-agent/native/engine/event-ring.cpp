#include "event-ring.h"

void event_ring_init(event_ring & ring, uint64_t capacity) {
    uint64_t power = 1;
    while (power < capacity) power *= 2;
    ring.slots.reset(new miss_event[power]());
    ring.capacity = power;
    ring.written = ring.taken = ring.dropped = 0;
}

bool event_ring_push(event_ring & ring, const miss_event & event) {
    const uint64_t at = ring.written.load(std::memory_order_relaxed);
    if (at - ring.taken.load(std::memory_order_acquire) == ring.capacity) {
        ring.dropped.fetch_add(1, std::memory_order_relaxed);
        return false;
    }
    ring.slots[at & (ring.capacity - 1)] = event;
    ring.written.store(at + 1, std::memory_order_release);
    return true;
}

bool event_ring_pop(event_ring & ring, miss_event & event) {
    const uint64_t at = ring.taken.load(std::memory_order_relaxed);
    if (at == ring.written.load(std::memory_order_acquire)) return false;
    event = ring.slots[at & (ring.capacity - 1)];
    ring.taken.store(at + 1, std::memory_order_release);
    return true;
}

uint64_t event_ring_free(const event_ring & ring) {
    return ring.capacity - (ring.written.load(std::memory_order_relaxed) - ring.taken.load(std::memory_order_acquire));
}
