// The engine's interface, part two: model files, which need no engine that is open. As in engine.h.
#pragma once

#include "engine-values.h"

// Reads and checks the header of a GGUF file; touches no tensor data. MODEL_FORMAT, NOT_MOE, IO.
engine_status engine_inspect(const std::string & path, model_info & out);

// The three ways to write a model file; see model-write.h, model-pack.h, model-widen.h and model-quantize.h. A file that is
// there already is left alone unless `replace`. An interrupted one goes on where it stopped when it is called again.
struct write_result {
    uint64_t bytes = 0;  // of the file
    uint64_t kept = 0;   // of them, left by an interrupted attempt, compared and kept
};
engine_status engine_pack(const std::string & source, const std::string & target, bool replace, const progress_callback & progress,
                          write_result & out);

// Checks a packed file against its checksums.
struct check_result {
    uint64_t bytes = 0;                 // that were read and checked
    uint64_t damaged_count = 0;
    std::vector<std::string> damaged;   // the first 1,000
};
engine_status engine_check(const std::string & path, const progress_callback & progress, check_result & out);

// Exactly one of the first three is set. `expert_bytes`: of one expert, at least; `total_bytes`: of all experts.
struct widen_options {
    int64_t width = 0;
    uint64_t expert_bytes = 0, total_bytes = 0;
    bool replace = false;
};
struct widen_result {
    write_result file;
    int64_t width = 0;
};
engine_status engine_widen(const std::string & source, const std::string & target, const widen_options & options,
                           const progress_callback & progress, widen_result & out);

struct quantize_options {
    std::string type;          // ggml's name of it, such as "q4_0"
    std::string down_type;     // of down matrices; empty: `type`
    bool requantize = false;   // also experts that are quantised already
    int32_t threads = 0;       // 0: physical cores minus one
    bool replace = false;
};
struct quantize_result {
    write_result file;
    double relative_error = 0;  // of all expert weights: root of (sum of squared changes / sum of squares)
};
engine_status engine_quantize(const std::string & source, const std::string & target, const quantize_options & options,
                              const progress_callback & progress, quantize_result & out);
