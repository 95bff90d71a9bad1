#include "routing.h"

#include <cmath>

float route_range(const float * z, int experts) {
    float lowest = INFINITY, highest = -INFINITY;
    for (int e = 0; e < experts; e++) {
        if (!std::isfinite(z[e])) continue;
        if (z[e] < lowest) lowest = z[e];
        if (z[e] > highest) highest = z[e];
    }
    return highest >= lowest ? highest - lowest : 0;
}

void range_mean_add(range_mean & mean, float range) {
    mean.sum += range;
    mean.tokens++;
}

double range_mean_value(const range_mean & mean) {
    return mean.tokens ? mean.sum / double(mean.tokens) : 0;
}

static int rank_among(const int32_t * ids, int k, int expert) {
    for (int i = 0; i < k; i++) {
        if (ids[i] == expert) return i;
    }
    return -1;
}

// Mass the selection gave up, from the experts in which the two choices differ only.
static double mass_lost(const float * z, int experts, const int32_t * own, const int32_t * chosen, int k) {
    float highest = -INFINITY;
    for (int e = 0; e < experts; e++) {
        if (std::isfinite(z[e]) && z[e] > highest) highest = z[e];
    }
    double total = 0;
    for (int e = 0; e < experts; e++) {
        if (std::isfinite(z[e])) total += std::exp(double(z[e]) - highest);
    }
    double lost = 0;
    for (int i = 0; i < k; i++) {
        if (rank_among(chosen, k, own[i]) < 0) lost += std::exp(double(z[own[i]]) - highest);
        if (rank_among(own, k, chosen[i]) < 0) lost -= std::exp(double(z[chosen[i]]) - highest);
    }
    return lost / total;
}

route_outcome route_select(const float * z, int experts, const uint8_t * resident, engine_routing routing,
                           double lambda, int top_j, double delta, int32_t * ids, int k) {
    route_outcome outcome;
    if (routing == ROUTING_ORIGINAL || lambda == 0 || k > ROUTE_MAX_K) return outcome;

    const float bonus = float(lambda * delta);
    int32_t chosen[ROUTE_MAX_K];
    float score[ROUTE_MAX_K];
    int order[ROUTE_MAX_K];  // breaks ties: the model's rank, or k + index outside its top-K
    int found = 0;
    for (int e = 0; e < experts; e++) {
        if (!std::isfinite(z[e])) continue;
        const int own_rank = rank_among(ids, k, e);
        const bool kept = resident[e] || (own_rank >= 0 && own_rank < top_j);
        const float s = kept ? z[e] + bonus : z[e];
        const int o = own_rank >= 0 ? own_rank : k + e;
        int at = found;
        while (at > 0 && (s > score[at - 1] || (s == score[at - 1] && o < order[at - 1]))) at--;
        if (at == k) continue;
        if (found < k) found++;
        for (int i = found - 1; i > at; i--) {
            chosen[i] = chosen[i - 1];
            score[i] = score[i - 1];
            order[i] = order[i - 1];
        }
        chosen[at] = e;
        score[at] = s;
        order[at] = o;
    }
    if (found < k) return outcome;

    for (int i = 0; i < k; i++) {
        if (rank_among(ids, k, chosen[i]) < 0) outcome.swaps++;
    }
    if (outcome.swaps > 0) outcome.mass_lost = mass_lost(z, experts, ids, chosen, k);
    for (int i = 0; i < k; i++) ids[i] = chosen[i];
    return outcome;
}
