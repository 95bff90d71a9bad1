#include "prefetch.h"

#include <algorithm>
#include <cmath>
#include <functional>

// A guess is read if it is at least this likely. What is read while the disk would be idle costs little where it was in
// vain: a demand waits for half a piece. Measured on a disk that never makes up for idle time, at 700 MB/s with experts of
// 22 MB: one in four saved more than even odds did. A disk that does make up pays for every byte, and `auto` finds out.
static const float LIKELY_ENOUGH = 0.25f;
// Margins in shares of the usual range, and after how many guesses a record forgets half.
static const float BIN_WIDTH = 0.02f;
static const float RECORD_MEMORY = 64;

static staging_slot * slot_of(prefetcher & p, int layer, int expert) {
    for (auto & slot : p.slots) {
        if (slot.layer == layer && slot.expert == expert) return &slot;
    }
    return nullptr;
}

bool prefetch_holds(const prefetcher & p, int layer, int expert) { return slot_of(const_cast<prefetcher &>(p), layer, expert) != nullptr; }

int64_t prefetch_staging_bytes(const prefetcher & p) {
    uint64_t largest = 0;
    for (const layer_memory & layer : p.reads->memory->layers) largest = std::max(largest, layer.expert_bytes);
    return int64_t(p.slots.size() * largest);
}

void prefetch_init(prefetcher & p, expert_reads & reads, int top_k, int slots) {
    p.reads = &reads;
    const int experts = reads.memory->experts;
    p.top_k = top_k;
    p.most_guesses = std::min(experts, top_k + top_k / 2);
    p.guesses.resize(size_t(experts));
    p.bins.resize(size_t(experts));
    p.scores.resize(size_t(experts));
    p.ranked.resize(size_t(experts));
    p.records.assign(reads.memory->layers.size(), guess_record());
    p.slots.assign(size_t(slots), staging_slot());
    p.tallies.reset(new prefetch_tally[reads.memory->layers.size()]);
}

// A map that cannot be used is passed over: pre-fetch is a matter of speed alone, and the routers foretell as well.
void prefetch_open(prefetcher & p, const std::string & model_path) {
    const router_forecast & forecast = p.forecast;
    p.input.assign(size_t(forecast_features(forecast.inputs, forecast.experts)), 0);
    p.previous.assign(forecast.routers.size() * size_t(forecast.experts), 0);
    if (failed(forecast_map_read(forecast_map_path(model_path), forecast, p.map))) p.map = forecast_map();
}

void prefetch_begin(prefetcher & p) {
    p.active = !p.slots.empty() && (p.mode == PREFETCH_ON || (p.mode == PREFETCH_AUTO && prefetch_trial_on(p.trial)));
    p.has_input = false;
    p.shown_active.set(p.active);
}

// Nothing of it may be in flight.
static void empty_slot(prefetcher & p, staging_slot & slot) {
    int64_t arrived = 0;
    const layer_memory & memory = p.reads->memory->layers[size_t(slot.layer)];
    for (int place = 0; place < memory.n_places; place++) {
        const flash_request & part = expert_read_part(*p.reads, slot.layer, slot.expert, place);
        arrived += int64_t(part.bytes) * part.finished.load() / part.pieces.load();
    }
    p.tallies[size_t(slot.layer)].wasted_bytes.add(arrived);
    expert_memory_release(*p.reads->memory, slot.layer, slot.expert);
    slot = staging_slot();
}

prefetch_outcome prefetch_claim(prefetcher & p, int layer, int expert, int64_t & asked_ns) {
    staging_slot * slot = slot_of(p, layer, expert);
    if (!slot) return PREFETCH_NONE;
    asked_ns = slot->asked_ns;
    *slot = staging_slot();
    const bool ready = expert_read_done(*p.reads, layer, expert) && !failed(expert_read_status(*p.reads, layer, expert));
    prefetch_tally & tally = p.tallies[size_t(layer)];
    (ready ? tally.ready : tally.late).add(1);
    return ready ? PREFETCH_READY : PREFETCH_LATE;
}

static void learn(guess_record & record, int bin, bool right) {
    if (record.all[bin] >= RECORD_MEMORY) {
        record.all[bin] /= 2;
        record.right[bin] /= 2;
    }
    record.all[bin]++;
    record.right[bin] += right;
}

void prefetch_settle(prefetcher & p, int layer, const int32_t * missed, int n) {
    if (p.guessed_layer == layer) {
        prefetch_tally & tally = p.tallies[size_t(layer)];
        tally.guesses.add(p.count);
        tally.absent.add(n);
        for (int i = 0; i < p.count; i++) {
            const bool right = std::find(missed, missed + n, p.guesses[size_t(i)]) != missed + n;
            tally.right.add(right);
            learn(p.records[size_t(layer)], p.bins[size_t(i)], right);
        }
    }
    prefetch_pause(p);
}

// A slot that may be given to a new guess: a free one, or the one guessed longest ago that is not guessed now and of
// which nothing is in flight.
static staging_slot * take_slot(prefetcher & p) {
    staging_slot * oldest = nullptr;
    for (auto & slot : p.slots) {
        if (slot.layer < 0) return &slot;
        if (slot.guessed == p.pass || (oldest && oldest->guessed <= slot.guessed)) continue;
        if (expert_read_settled(*p.reads, slot.layer, slot.expert)) oldest = &slot;
    }
    if (oldest) empty_slot(p, *oldest);
    return oldest;
}

static bool start_guess(prefetcher & p, int layer, int expert) {
    staging_slot * slot = slot_of(p, layer, expert);
    if (!slot) {
        slot = take_slot(p);
        if (!slot) return false;
        slot->layer = layer;
        slot->expert = expert;
        slot->asked_ns = now_ns();
        expert_read_begin(*p.reads, layer, expert);
    }
    slot->guessed = p.pass;
    for (const int32_t place : p.reads->turns[size_t(layer)]) {
        if (!flash_reader_start(*p.reads->reader, expert_read_part(*p.reads, layer, expert, place), FLASH_SPECULATIVE)) return true;
    }
    return true;
}

void prefetch_see(prefetcher & p, const ggml_tensor * scores) {
    const float * input = router_forecast_input(p.forecast, scores);
    p.has_input = input != nullptr;
    if (input) std::copy(input, input + p.forecast.inputs, p.input.begin());
}

void prefetch_note(prefetcher & p, int layer, const float * z, const int32_t * selected, int k) {
    const int experts = p.forecast.experts;
    std::copy(z, z + experts, p.previous.begin() + size_t(layer) * size_t(experts));
    if (p.map.coefficients.empty() || layer + 1 == p.map.layers) return;
    forecast_features_fill(p.input.data() + p.forecast.inputs, experts, z, selected, k, p.previous.data() + size_t(layer + 1) * size_t(experts));
}

static bool foretell(prefetcher & p, int layer) {
    if (!p.has_input) return false;
    if (!p.map.coefficients.empty()) {
        forecast_map_apply(forecast_map_of(p.map, layer), forecast_features(p.map.inputs, p.map.experts), p.map.experts, p.input.data(), p.scores.data());
    } else if (!router_forecast_apply(p.forecast, layer, p.input.data(), p.scores.data())) {
        return false;
    }
    // Coefficients are finite, their sums need not be, and what has no order cannot be sorted.
    for (float & z : p.scores) z = std::isnan(z) ? -INFINITY : z;
    return true;
}

// The absent experts of the highest scores into `p.guesses`, best first.
static void choose_guesses(prefetcher & p, const uint8_t * resident) {
    const float * z = p.scores.data();
    int absent = 0;
    for (int e = 0; e < p.forecast.experts; e++) {
        if (!resident[e] && std::isfinite(z[e])) p.guesses[size_t(absent++)] = e;
    }
    p.count = std::min(absent, p.most_guesses);
    std::partial_sort(p.guesses.begin(), p.guesses.begin() + p.count, p.guesses.begin() + absent, [z](int32_t a, int32_t b) {
        return z[a] != z[b] ? z[a] > z[b] : a < b;
    });
}

// How far each guess lies from being selected: its score over the one that it has to beat, with the bonus of the routing.
static void sort_into_bins(prefetcher & p, const guess_terms & terms) {
    const int n = p.forecast.experts, k = std::min(p.top_k, n - 1);
    const float bonus = float(terms.bonus), width = float(std::fmax(terms.range, 1e-6)) * BIN_WIDTH;
    std::copy(p.scores.begin(), p.scores.end(), p.ranked.begin());
    std::sort(p.ranked.begin(), p.ranked.end(), std::greater<float>());
    const float protects = terms.top_j > 0 ? p.ranked[size_t(terms.top_j - 1)] : INFINITY;
    const auto biased = [&](int e) { return p.scores[size_t(e)] + (terms.resident[e] || p.scores[size_t(e)] >= protects ? bonus : 0); };
    for (int e = 0; e < n; e++) p.ranked[size_t(e)] = biased(e);
    std::nth_element(p.ranked.begin(), p.ranked.begin() + k, p.ranked.end(), std::greater<float>());
    const float next = p.ranked[size_t(k)], last = *std::min_element(p.ranked.begin(), p.ranked.begin() + k);
    for (int i = 0; i < p.count; i++) {
        const float score = biased(p.guesses[size_t(i)]);
        const float margin = (score - (score >= last ? next : last)) / width;
        p.bins[size_t(i)] = uint8_t(std::fmin(MARGIN_BINS - 1, std::fmax(0, margin + MARGIN_BINS / 2)));
    }
}

void prefetch_guess(prefetcher & p, int layer, const guess_terms & terms) {
    if (!foretell(p, layer)) return;
    p.pass++;
    p.guessed_layer = layer;
    choose_guesses(p, terms.resident);
    sort_into_bins(p, terms);
    const guess_record & record = p.records[size_t(layer)];
    bool asked = false;
    for (int i = 0; i < p.count; i++) {
        const int bin = p.bins[size_t(i)];
        if (record.right[bin] + 1 < LIKELY_ENOUGH * (record.all[bin] + 2)) continue;
        if (!start_guess(p, layer, p.guesses[size_t(i)])) break;
        p.tallies[size_t(layer)].asked.add(1);
        asked = true;
    }
    if (asked) flash_reader_ring(*p.reads->reader);
}

void prefetch_pause(prefetcher & p) {
    for (const auto & slot : p.slots) {
        if (slot.layer >= 0) expert_read_withdraw(*p.reads, slot.layer, slot.expert);
    }
    flash_reader_forget(*p.reads->reader, FLASH_SPECULATIVE);
    p.guessed_layer = -1;
    p.count = 0;
}

void prefetch_drop(prefetcher & p) {
    prefetch_pause(p);
    for (auto & slot : p.slots) {
        if (slot.layer < 0) continue;
        expert_read_wait(*p.reads, slot.layer, slot.expert);
        empty_slot(p, slot);
    }
}
