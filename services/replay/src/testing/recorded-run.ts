/** A run of the real engine on the reference model, with what its routers said. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Engine, type EvalResult, type ModelInfo, packScores, type RoutingSpec, type WhatIf } from '@moefleet/edge-agent/engine';
import type { RouterWindow } from '@moefleet/proto';
import { effectiveSpecOf } from '../recorded-spec';

const FIXTURES = join(__dirname, '..', '..', '..', '..', 'test', 'fixtures');
const CONTEXT = 256;

export interface Bench {
  info: ModelInfo;
  /** closed-loop, from an empty cache */
  evaluate(spec: Partial<WhatIf> & { capacity: number }, recordScores?: boolean): Promise<EvalResult>;
  /** the whole run as one window a device would send */
  windowOf(result: EvalResult, spec: Partial<WhatIf> & { capacity: number }, exact: boolean): Promise<RouterWindow>;
  close(): Promise<void>;
}

/** `tokens`: a multiple of 256. */
export async function openBench(text: string, tokens: number): Promise<Bench> {
  const engine = await Engine.open({
    modelPath: join(FIXTURES, 'tinymoe-17m-q8_0.gguf'), contextTokens: CONTEXT, threads: 1, lanes: 0, directIo: false, prefillBytes: 0, keepAll: true,
    spec: specOf({ capacity: 32 }),
  });
  const info = engine.info();
  const ids = engine.tokenize(readFileSync(join(FIXTURES, text), 'utf8'), false, false).slice(0, tokens + 1);
  return {
    info,
    evaluate: (spec, recordScores = false) => engine.evaluate({ tokens: ids, context: CONTEXT, spec: specOf(spec), stepped: false, recordScores }),
    windowOf: async (result, spec, exact) => ({
      windowId: 'w', modelHash: 'ab', timeMs: 1n, tokens, layers: info.moeLayers.length, experts: info.experts, lambda: spec.lambda ?? 0, generation: 0n, topK: info.topK,
      moeLayers: info.moeLayers, expertBytes: info.expertBytes.map((bytes) => BigInt(bytes)), spec: effectiveSpecOf(specOf(spec)), entropyBits: [], ...await packScores(result.scores!, info.experts, exact),
    }),
    close: () => engine.close(),
  };
}

function specOf({ capacity, ...spec }: Partial<WhatIf> & { capacity: number }): RoutingSpec {
  return { routing: 'cache_prior', lambda: 0, topJ: 2, generation: 0, eviction: 'adaptive', capacities: new Array<number>(6).fill(capacity), ...spec } as RoutingSpec;
}
