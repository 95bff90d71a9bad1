// Routing as the definitions in engine/routing.h say it, written from them: slow, with plain lists, in double
// precision, and sharing no code with routing.cpp.
#pragma once

#include "stock-run.h"
#include "tiny-model.h"

#include <algorithm>
#include <cmath>

// One layer of the reference: plain lists, everything in double precision.
struct reference_layer {
    floats router_bias, selection_bias;
    std::vector<int32_t> residents;  // least recently used first
    double range_sum = 0;
    int tokens = 0;

    bool holds(int32_t e) const { return std::find(residents.begin(), residents.end(), e) != residents.end(); }
};

struct expected_routing {
    std::vector<double> z, gates;  // per expert; -inf in z: masked
    std::vector<int32_t> ranking;  // all experts that may be chosen, best first
    std::vector<int32_t> chosen;   // K of them, fewer where some are dropped
};

[[maybe_unused]] static std::vector<double> softmax(const std::vector<double> & x) {
    std::vector<double> out;
    double highest = -INFINITY, total = 0;
    for (const double v : x) highest = std::max(highest, v);
    for (const double v : x) {
        out.push_back(std::exp(v - highest));
        total += out.back();
    }
    for (double & v : out) v /= total;
    return out;
}

// The groups whose two best experts add up highest stay; the rest is masked.
[[maybe_unused]] static void mask_groups(const tiny_model & model, std::vector<double> & scores) {
    const size_t size = scores.size() / size_t(model.groups);
    std::vector<std::pair<double, size_t>> sums;
    for (size_t g = 0; g < size_t(model.groups); g++) {
        std::vector<double> group(scores.begin() + long(g * size), scores.begin() + long((g + 1) * size));
        std::sort(group.rbegin(), group.rend());
        sums.push_back({group[0] + group[1], g});
    }
    std::sort(sums.rbegin(), sums.rend());
    for (size_t i = size_t(model.groups_used); i < sums.size(); i++) {
        for (size_t e = 0; e < size; e++) scores[sums[i].second * size + e] = -INFINITY;
    }
}

// z and the gate by the model's own configuration: the input of the gate, or the selection score where a selection bias
// or groups follow the gate.
[[maybe_unused]] static void score_experts(const tiny_model & model, const reference_layer & layer, const floats & logits, expected_routing & out) {
    std::vector<double> z(logits.begin(), logits.end());
    for (size_t e = 0; e < layer.router_bias.size(); e++) z[e] += layer.router_bias[e];
    out.gates = z;
    if (model.gate == GATE_SOFTMAX) out.gates = softmax(z);
    if (model.gate == GATE_SIGMOID) {
        for (double & g : out.gates) g = 1 / (1 + std::exp(-g));
    }
    if (!layer.selection_bias.empty() || model.groups) {
        z = out.gates;
        for (size_t e = 0; e < layer.selection_bias.size(); e++) z[e] += layer.selection_bias[e];
        if (model.groups) mask_groups(model, z);
    }
    out.z = z;
    for (int32_t e = 0; e < int32_t(z.size()); e++) {
        if (std::isfinite(z[size_t(e)])) out.ranking.push_back(e);
    }
    std::sort(out.ranking.begin(), out.ranking.end(), [&](int32_t a, int32_t b) { return z[size_t(a)] > z[size_t(b)]; });
}

[[maybe_unused]] static void choose_by_prior(const engine_spec & spec, const reference_layer & layer, int top_k, expected_routing & r) {
    std::vector<std::pair<double, int32_t>> scored;
    for (size_t rank = 0; rank < r.ranking.size(); rank++) {
        const int32_t e = r.ranking[rank];
        const bool pulled = layer.holds(e) || int(rank) < spec.top_j;
        scored.push_back({r.z[size_t(e)] + (pulled ? spec.lambda * layer.range_sum / layer.tokens : 0), e});
    }
    std::sort(scored.rbegin(), scored.rend());
    for (int i = 0; i < top_k; i++) r.chosen.push_back(scored[size_t(i)].second);
}

[[maybe_unused]] static int mass_prefix(const expected_routing & r, double threshold) {
    std::vector<double> finite;
    for (const int32_t e : r.ranking) finite.push_back(r.z[size_t(e)]);
    const std::vector<double> mass = softmax(finite);
    double held = 0;
    int n = 0;
    while (held < threshold && n < int(mass.size())) held += mass[size_t(n++)];
    return n;
}

[[maybe_unused]] static void choose_by_rank(int top_j, int within, const reference_layer & layer, int top_k, expected_routing & r) {
    std::vector<int32_t> preferred, others, in_order;
    for (size_t rank = 0; rank < r.ranking.size(); rank++) {
        const int32_t e = r.ranking[rank];
        if (int(rank) < top_j || (int(rank) < within && layer.holds(e))) preferred.push_back(e);
        else others.push_back(e);
    }
    preferred.insert(preferred.end(), others.begin(), others.end());
    preferred.resize(size_t(top_k));
    for (const int32_t e : r.ranking) {
        if (std::find(preferred.begin(), preferred.end(), e) != preferred.end()) r.chosen.push_back(e);
    }
}

[[maybe_unused]] static void choose(const engine_spec & spec, const reference_layer & layer, int top_k, expected_routing & r) {
    if (spec.routing == ROUTING_CACHE_PRIOR) return choose_by_prior(spec, layer, top_k, r);
    if (spec.routing == ROUTING_MAX_RANK) return choose_by_rank(spec.top_j, spec.max_rank, layer, top_k, r);
    if (spec.routing == ROUTING_CUMULATIVE_THRESHOLD) {
        return choose_by_rank(spec.top_j, mass_prefix(r, spec.mass_threshold), layer, top_k, r);
    }
    for (int rank = 0; rank < top_k; rank++) {
        const int32_t e = r.ranking[size_t(rank)];
        if (spec.routing == ROUTING_ORIGINAL || rank < spec.top_j || layer.holds(e)) r.chosen.push_back(e);
    }
}

[[maybe_unused]] static expected_routing route_by_definition(const tiny_model & model, const engine_spec & spec, reference_layer & layer, const floats & logits) {
    expected_routing r;
    score_experts(model, layer, logits, r);
    layer.range_sum += r.z[size_t(r.ranking.front())] - r.z[size_t(r.ranking.back())];
    layer.tokens++;
    choose(spec, layer, model.top_k, r);
    for (size_t i = r.chosen.size(); i-- > 0;) {
        layer.residents.erase(std::remove(layer.residents.begin(), layer.residents.end(), r.chosen[i]), layer.residents.end());
        layer.residents.push_back(r.chosen[i]);
    }
    while (int(layer.residents.size()) > spec.capacities[0]) layer.residents.erase(layer.residents.begin());
    return r;
}
