// Single-producer single-consumer ring of miss events. The decoding thread pushes and never waits: a full ring
// drops the event and counts it. The counts always add up: pushed = popped + held + dropped.
#pragma once

#include "engine.h"

#include <atomic>
#include <memory>

struct event_ring {
    std::unique_ptr<miss_event[]> slots;
    uint64_t capacity = 0;              // a power of two
    std::atomic<uint64_t> written{0};   // owned by the producer
    std::atomic<uint64_t> taken{0};     // owned by the consumer
    std::atomic<uint64_t> dropped{0};
};

// Rounds `capacity` up to a power of two.
void event_ring_init(event_ring & ring, uint64_t capacity);
bool event_ring_push(event_ring & ring, const miss_event & event);
bool event_ring_pop(event_ring & ring, miss_event & event);
// Slots a producer can rely on right now.
uint64_t event_ring_free(const event_ring & ring);
