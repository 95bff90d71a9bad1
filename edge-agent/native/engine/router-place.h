// Recognises the router in a compute graph: from the node that holds the selected ids back to the scores.
#pragma once

#include "layer-hook.h"

// "ffn_moe_topk-12" with stem "ffn_moe_topk" gives 12; -1 for any other name.
int graph_node_block(const char * name, const char * stem);

// `topk` is the view of the sorted indices. MODEL_FORMAT where the ids do not come from sorting scores.
engine_status router_place_find(const ggml_tensor * topk, router_place & out);

// The gate weights of the ids found before; a node that gathers in another way is left out.
void router_place_find_weights(const ggml_tensor * weights, router_place & out);
