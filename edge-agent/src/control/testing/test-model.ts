/** A model as the pure parts see it: four layers of eight experts of 100 bytes, two per token. */
import type { LoadedModel } from '../../engine-host';

export function testModel(): LoadedModel {
  return {
    hash: 'ab'.repeat(32),
    contextTokens: 256,
    info: {
      path: '/models/test.gguf', files: ['/models/test.gguf'], fileBytes: 10_000, architecture: 'qwen2moe', name: 'test', layers: 4, moeLayers: [0, 1, 2, 3], experts: 8, topK: 2,
      expertBytes: [100, 100, 100, 100], denseBytes: 5_000, tokenCycleBytes: 800, alignment: 32, packVersion: 0, contextTrain: 256, vocab: 100,
      selectBy: 'logits', normalisesWeights: false, tensors: [],
    },
  };
}
