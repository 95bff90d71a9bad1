// Foretells the scores of a later layer's router while an earlier layer is computed: the later layer's own router applied
// to the input of the earlier one's (arXiv 2511.05814, "speculative pre-fetching"), or a fitted map where there is one.
// What it says is only ever a guess of what to read; routing never sees it.
#pragma once

#include "engine.h"

#include "ggml.h"

struct router_place;

enum forecast_gate { FORECAST_NO_GATE = 0, FORECAST_SOFTMAX, FORECAST_SIGMOID, FORECAST_SQRT_SOFTPLUS };

// One MoE layer's router, as found in the graph. Tensors belong to the model.
struct forecast_router {
    const ggml_tensor * weights = nullptr;         // [inputs, experts]; null: not found, so nothing is foretold
    const ggml_tensor * gate_bias = nullptr;       // [experts], added to the logits; null: none
    const ggml_tensor * selection_bias = nullptr;  // [experts], added to the gate's output; null: none
    forecast_gate gate = FORECAST_NO_GATE;         // what lies between logits and scores
};

struct router_forecast {
    std::vector<forecast_router> routers;          // per MoE layer
    int experts = 0;
    int64_t inputs = 0;                            // width of a router's input, the same for all
    std::vector<float> row;                        // scratch, `inputs` long
};

// From the look pass: `topk` selects the experts of `layer`, by the scores of `place`.
void router_forecast_note(router_forecast & forecast, int layer, const router_place & place, const ggml_tensor * topk);
void router_forecast_init(router_forecast & forecast, int layers, int experts);

// From scores back to the router's matrix product; null where there is none.
const ggml_tensor * router_forecast_product(const ggml_tensor * scores);
// The router's input, as the graph holds it when `scores` (or the sorted scores) have been computed; null where it is
// not one row of floats.
const float * router_forecast_input(const router_forecast & forecast, const ggml_tensor * scores);

// Fills `scores[experts]` with what the router of `layer` would make of `input`, in the domain that its layer ranks by.
// False where nothing can be foretold.
bool router_forecast_apply(router_forecast & forecast, int layer, const float * input, float * scores);
