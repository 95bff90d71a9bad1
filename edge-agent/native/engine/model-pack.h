// Packing a model file, and checking one against its digests.
#pragma once

#include "status.h"

// Writes the model as model-write.h describes, its tensors as they are. A source that is packed is checked on the way.
engine_status model_pack(const std::string & source, const std::string & target, bool replace, const progress_callback & progress, write_result & out);

// Reads the whole file and lists what does not match its digest: "the header", tensor names, "blk.3 expert 17". What cannot
// be read for an error of the disk counts as damaged too. BAD_ARGUMENT (not packed), MODEL_FORMAT, NOT_MOE, IO, CANCELLED.
engine_status model_check(const std::string & path, const progress_callback & progress, check_result & out);
