// Recognises the router in a compute graph: from the node that holds the selected ids back to the scores.
#pragma once

#include "layer-hook.h"

#include <cstring>

// "ffn_moe_topk-12" with stem "ffn_moe_topk" gives 12; -1 for any other name.
int graph_node_block(const char * name, const char * stem);

enum { ROUTER_STEM = 8 };  // letters of "ffn_moe_"

// What the hook listens to: llama.cpp's names for the nodes of the router. Asked of every node of a graph.
inline bool is_router_node(const ggml_tensor * t) { return memcmp(t->name, "ffn_moe_", ROUTER_STEM) == 0; }

// The router's node of which `t` takes rows, where a model routes before it leaves out the tokens without output, in its
// last layer; `t` itself otherwise.
inline const ggml_tensor * router_rows_of(const ggml_tensor * t) {
    return t->op == GGML_OP_GET_ROWS && !is_router_node(t) && is_router_node(t->src[0]) ? t->src[0] : t;
}

// `topk` is the view of the sorted indices. MODEL_FORMAT, with the node's name, where the rule behind them is none of
// those known: a pull on scores that were misread would still select something.
engine_status router_place_find(const ggml_tensor * topk, router_place & out);

// The gate weights of the ids found before; a node that gathers in another way is left out.
void router_place_find_weights(const ggml_tensor * weights, router_place & out);
