// Fitted maps that foretell a layer's router scores from what the layer before it knows; kept in a small file beside the
// model, `<model>.prefetch`:
//
//   8 bytes   "MOEFPRE1"
//   u32 x 4   MoE layers, experts, router inputs, 0
//   u64       fingerprint of the model's routers: a map is of use to any model with the very same routers, such as a
//             packed or a widened copy
//   f32       for each MoE layer but the first: features x experts coefficients
//
// Features of a token at layer l: the router's input there, the softmax mass of each selected expert (0 for the others),
// the scores that layer l+1 gave the token before, and 1. The file is untrusted: its sizes must be those of the model,
// its length must be theirs, and its numbers finite.
#pragma once

#include "router-forecast.h"
#include "status.h"

#include <string>
#include <vector>

struct forecast_map {
    int layers = 0, experts = 0;
    int64_t inputs = 0;
    std::vector<float> coefficients;   // (layers - 1) x features x experts; empty: there is no map
};

inline int64_t forecast_features(int64_t inputs, int experts) { return inputs + 2 * int64_t(experts) + 1; }
inline float * forecast_map_of(forecast_map & map, int layer) {
    return map.coefficients.data() + size_t(layer - 1) * size_t(forecast_features(map.inputs, map.experts)) * size_t(map.experts);
}

// Fills the part of the features that follows the router's input: `selected[k]` experts of a token, their layer's scores
// z, and the next layer's scores of the token before.
void forecast_features_fill(float * rest, int experts, const float * z, const int32_t * selected, int k, const float * previous);

// scores[experts] = features x coefficients.
void forecast_map_apply(const float * coefficients, int64_t features, int experts, const float * x, float * scores);

// 0 where a layer's router is not known.
uint64_t forecast_fingerprint(const router_forecast & forecast);

std::string forecast_map_path(const std::string & model_path);
// IO; the file is written beside its place and moved there.
engine_status forecast_map_write(const std::string & path, const forecast_map & map, uint64_t fingerprint);
// An empty map and OK where there is no file. MODEL_FORMAT where it is not a map of this model.
engine_status forecast_map_read(const std::string & path, const router_forecast & forecast, forecast_map & out);
