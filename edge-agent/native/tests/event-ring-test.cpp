#include "event-ring.h"

#include "check.h"

#include <thread>

static miss_event numbered(int64_t n) {
    miss_event m{};
    m.miss_number = n;
    return m;
}

static void drops_and_counts_when_full() {
    event_ring ring;
    event_ring_init(ring, 3);
    CHECK_EQUAL(ring.capacity, 4u);
    for (int64_t n = 1; n <= 6; n++) CHECK_EQUAL(event_ring_push(ring, numbered(n)), n <= 4);
    CHECK_EQUAL(ring.dropped.load(), 2u);
    CHECK_EQUAL(event_ring_free(ring), 0u);
    miss_event m;
    for (int64_t n = 1; n <= 4; n++) {
        CHECK(event_ring_pop(ring, m));
        CHECK_EQUAL(m.miss_number, n);
    }
    CHECK(!event_ring_pop(ring, m));
    CHECK(event_ring_push(ring, numbered(7)));
}

static void keeps_order_between_two_threads() {
    event_ring ring;
    event_ring_init(ring, 64);
    const int64_t total = 200000;
    std::thread producer([&] {
        for (int64_t n = 1; n <= total;) {
            if (event_ring_free(ring) > 0) {
                event_ring_push(ring, numbered(n));
                n++;
            } else {
                std::this_thread::yield();
            }
        }
    });
    int64_t expected = 1;
    miss_event m;
    while (expected <= total) {
        if (!event_ring_pop(ring, m)) {
            std::this_thread::yield();
            continue;
        }
        if (m.miss_number != expected) break;
        expected++;
    }
    producer.join();
    CHECK_EQUAL(expected, total + 1);
    CHECK_EQUAL(ring.dropped.load(), 0u);
}

int main() {
    drops_and_counts_when_full();
    keeps_order_between_two_threads();
    return checks_done();
}
