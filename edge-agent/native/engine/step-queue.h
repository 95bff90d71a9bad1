// Carries steps from the decoding thread to the thread that hands them out. Fixed slots; the decoding thread waits
// only when the reader is STEP_SLOTS steps behind, so no step is ever lost. The misses of a step travel in the event
// ring and are joined to it here, by miss number. A long prefill comes in parts, so that its misses never pile up.
#pragma once

#include "event-ring.h"

#include "llama.h"

#include <semaphore.h>
#include <thread>

enum { STEP_SLOTS = 64 };

struct step_record {
    int32_t step = 0, token = -1;
    int64_t start_ns = 0, end_ns = 0, hits = 0, misses = 0;
    int64_t last_miss = 0;               // number of the latest miss when it was pushed
    bool has_logits = false;
};

struct step_queue {
    step_record slots[STEP_SLOTS];
    std::vector<float> logits;           // STEP_SLOTS x floats_per_step, when captured
    size_t floats_per_step = 0;
    std::atomic<uint64_t> written{0}, taken{0};
    std::atomic<bool> finished{false};
    sem_t bell;                          // rung after each push and whenever the ring should be emptied
    event_ring * ring = nullptr;
    const llama_vocab * vocab = nullptr;
    const step_callback * on_step = nullptr;
    std::thread reader;
};

// Starts the reading thread. `floats_per_step` is 0 where no router logits are captured.
void step_queue_start(step_queue & q, event_ring & ring, const llama_vocab * vocab, const step_callback & on_step,
                      size_t floats_per_step);
// Where the next step's router logits go, null where none are captured; valid until the push. Waits for a free slot.
float * step_queue_slot(step_queue & q);
void step_queue_push(step_queue & q, const step_record & record);
// Waits until the event ring has room for `events`.
void step_queue_make_room(step_queue & q, uint64_t events);
// Returns when every step has been handed out.
void step_queue_finish(step_queue & q);
