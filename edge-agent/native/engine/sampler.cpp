#include "sampler.h"

#include <algorithm>
#include <cmath>

void sampler_init(sampler & s, int vocab, double temperature, double top_p, uint64_t seed) {
    s.temperature = temperature;
    s.top_p = top_p;
    s.state = seed;
    if (temperature > 0) {
        s.weight.resize(size_t(vocab));
        s.heap.resize(size_t(vocab));
    }
}

// splitmix64 (Steele, Lea, Flood 2014): a full-period generator in one 64-bit word.
static double uniform(uint64_t & state) {
    uint64_t z = state += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return double((z ^ (z >> 31)) >> 11) * 0x1.0p-53;
}

static int32_t likeliest(const float * logits, int vocab) {
    int32_t best = 0;
    for (int32_t t = 1; t < vocab; t++) {
        if (logits[t] > logits[best]) best = t;
    }
    return best;
}

// Draws from the whole distribution: no order is needed.
static int32_t draw_any(sampler & s, int vocab, double total) {
    double left = uniform(s.state) * total;
    int32_t last = 0;
    for (int32_t t = 0; t < vocab; t++) {
        if (s.weight[size_t(t)] <= 0) continue;
        last = t;
        left -= s.weight[size_t(t)];
        if (left < 0) return t;
    }
    return last;
}

// Draws from the smallest set of likeliest tokens that holds `top_p` of the mass. A heap yields them in order without
// sorting the rest of the vocabulary.
static int32_t draw_top(sampler & s, int vocab, double total) {
    for (int32_t t = 0; t < vocab; t++) s.heap[size_t(t)] = t;
    const auto less = [&s](int32_t a, int32_t b) {
        return s.weight[size_t(a)] < s.weight[size_t(b)] || (s.weight[size_t(a)] == s.weight[size_t(b)] && a > b);
    };
    auto end = s.heap.end();
    std::make_heap(s.heap.begin(), end, less);
    double mass = 0;
    do {
        std::pop_heap(s.heap.begin(), end, less);
        --end;
        mass += s.weight[size_t(*end)];
    } while (mass < s.top_p * total && end != s.heap.begin());
    double left = uniform(s.state) * mass;
    auto at = s.heap.end();
    while (at != end) {
        --at;
        left -= s.weight[size_t(*at)];
        if (left < 0) break;
    }
    return *at;
}

int32_t sampler_choose(sampler & s, const float * logits, int vocab) {
    const int32_t best = likeliest(logits, vocab);
    if (s.temperature <= 0) return best;
    double total = 0;
    for (int32_t t = 0; t < vocab; t++) {
        const float w = std::exp(float((logits[t] - logits[best]) / s.temperature));
        s.weight[size_t(t)] = std::isfinite(w) ? w : 0;
        total += s.weight[size_t(t)];
    }
    return s.top_p >= 1 ? draw_any(s, vocab, total) : draw_top(s, vocab, total);
}
