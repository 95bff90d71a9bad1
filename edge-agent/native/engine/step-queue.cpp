#include "step-queue.h"

#include <cerrno>
#include <ctime>

namespace {

void nap() {
    const timespec t{0, 50000};
    nanosleep(&t, nullptr);
}

void empty_ring(step_queue & q, std::vector<miss_event> & events) {
    miss_event event;
    while (event_ring_pop(*q.ring, event)) events.push_back(event);
}

std::string piece_of(const llama_vocab * vocab, int32_t token) {
    if (token < 0) return "";
    std::string text(64, 0);
    int32_t n = llama_token_to_piece(vocab, token, text.data(), int32_t(text.size()), 0, false);
    if (n < 0) {
        text.resize(size_t(-n));
        n = llama_token_to_piece(vocab, token, text.data(), int32_t(text.size()), 0, false);
    }
    text.resize(size_t(n > 0 ? n : 0));
    return text;
}

void hand_out(step_queue & q, uint64_t at, std::vector<miss_event> & events) {
    const step_record & record = q.slots[at % STEP_SLOTS];
    // Its events were pushed before the record; later ones may be there already.
    size_t n = 0;
    while (n < events.size() && events[n].miss_number <= record.last_miss) n++;
    const std::string text = piece_of(q.vocab, record.token);
    engine_step step;
    step.step = record.step;
    step.token = record.token;
    step.text = reinterpret_cast<const uint8_t *>(text.data());
    step.text_bytes = text.size();
    step.start_ns = record.start_ns;
    step.end_ns = record.end_ns;
    step.hits = record.hits;
    step.misses = record.misses;
    step.events = events.data();
    step.n_events = n;
    step.router_logits = record.has_logits ? q.logits.data() + (at % STEP_SLOTS) * q.floats_per_step : nullptr;
    (*q.on_step)(step);
    events.erase(events.begin(), events.begin() + long(n));
}

void reader_main(step_queue & q) {
    std::vector<miss_event> events;
    for (;;) {
        while (sem_wait(&q.bell) != 0 && errno == EINTR) {}
        const bool last = q.finished.load(std::memory_order_acquire);
        for (;;) {
            const uint64_t at = q.taken.load(std::memory_order_relaxed);
            const bool has_step = at != q.written.load(std::memory_order_acquire);
            empty_ring(q, events);
            if (!has_step) break;
            hand_out(q, at, events);
            q.taken.store(at + 1, std::memory_order_release);
        }
        if (last) return;
    }
}

}  // namespace

void step_queue_start(step_queue & q, event_ring & ring, const llama_vocab * vocab, const step_callback & on_step,
                      size_t floats_per_step) {
    q.ring = &ring;
    q.vocab = vocab;
    q.on_step = &on_step;
    q.floats_per_step = floats_per_step;
    q.logits.resize(floats_per_step * STEP_SLOTS);
    sem_init(&q.bell, 0, 0);
    q.reader = std::thread(reader_main, std::ref(q));
}

float * step_queue_slot(step_queue & q) {
    const uint64_t at = q.written.load(std::memory_order_relaxed);
    while (at - q.taken.load(std::memory_order_acquire) == STEP_SLOTS) nap();
    return q.floats_per_step ? q.logits.data() + (at % STEP_SLOTS) * q.floats_per_step : nullptr;
}

void step_queue_push(step_queue & q, const step_record & record) {
    step_queue_slot(q);
    const uint64_t at = q.written.load(std::memory_order_relaxed);
    q.slots[at % STEP_SLOTS] = record;
    q.written.store(at + 1, std::memory_order_release);
    sem_post(&q.bell);
}

void step_queue_make_room(step_queue & q, uint64_t events) {
    while (event_ring_free(*q.ring) < events) {
        sem_post(&q.bell);
        nap();
    }
}

void step_queue_finish(step_queue & q) {
    q.finished.store(true, std::memory_order_release);
    sem_post(&q.bell);
    q.reader.join();
    sem_destroy(&q.bell);
}
