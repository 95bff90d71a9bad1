// What the benches need beside the engine: each mode is one process, so that it can be put into control
// groups of its own. Results are one line of JSON on standard output; errors one line on standard error.
#pragma once

#include "ggml.h"

#include <cstdint>
#include <string>
#include <vector>

struct stock_options {
    std::string model, text_path;
    int32_t tokens = 0;      // of the text, each decoded on its own
    int32_t context = 0;     // tokens per window; each starts with an empty KV cache
    int32_t threads = 0;
    int32_t passes = 1;      // how often the same tokens are decoded
    bool extra_bufts = true; // llama.cpp's own default: weights may be repacked into memory of their own
    bool (*hook)(ggml_tensor *, bool ask, void *) = nullptr;  // called between graph nodes; null: none
};

// Decodes a text with the stock library and its defaults: the file mapped, no hook. Times of each token, in nanoseconds
// of CLOCK_MONOTONIC, and its negative log likelihood.
int stock_decode(const stock_options & options);

// Decodes the first `tokens` of a text, `passes` times over, in four ways with every expert in memory, window by window in
// turns; prints the time of each token for each of them, in nanoseconds, and the engine's misses.
int hook_overhead(const stock_options & options);

struct probe_options {
    std::string path;
    int32_t lanes = 0;
    uint64_t bytes_per_second = 0;  // of the reader itself (flash-reader.h); 0: as fast as the disk is
    int64_t pause_ns = 0, for_ns = 0, skip_ns = 0;
    std::vector<int32_t> misses;    // of each token, over all layers; taken in turns
};

// Reads random experts of a model as an engine does that misses so many in each token: with its reader, its requests, in
// its order, layer by layer with a pause after each, for `for_ns` in all; what the first `skip_ns` read is not counted.
// Prints bytes, the time spent reading and the time that passed.
int read_probe(const probe_options & options);

// Asks the kernel to forget its cached pages of a file. Pages that a process maps stay.
int drop_cache(const std::string & path);
