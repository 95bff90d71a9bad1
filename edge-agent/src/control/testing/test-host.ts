/** An engine host with the real engine on the reference model, for tests; needs the compiled host and the addon. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { createLogger } from '@moefleet/runtime';
import type { HostState } from '../../engine-host';
import { EngineHostClient, type HostClientOptions } from '../../host/host-client';
import type { GenerateRequest, GenerateResult, RoutingSpec, Step } from '../../native';

export const HOST_PATH = join(__dirname, '..', '..', '..', 'dist', 'host', 'host-main.js');
export const REFERENCE_MODEL = join(__dirname, '..', '..', '..', '..', 'test', 'fixtures', 'tinymoe-17m-q8_0.gguf');

/** Lambda 0 with `capacity` experts in each of the reference model's six layers. */
export function plainSpec(capacity = 8, lambda = 0, generation = 0): RoutingSpec {
  return { routing: 'cache_prior', lambda, topJ: 2, capacities: Array<number>(6).fill(capacity), generation };
}

export function testHost(options: Partial<HostClientOptions> = {}): EngineHostClient {
  if (!existsSync(HOST_PATH)) throw new Error(`${HOST_PATH} is not there; build it with: npx tsc -b edge-agent`);
  return new EngineHostClient({
    hostPath: HOST_PATH, env: process.env, log: createLogger('test', 'silent'), modelPath: REFERENCE_MODEL, lastGoodModelPath: null,
    open: { contextTokens: 0, threads: 1, lanes: 2, directIo: true, prefillBytes: 0, keepAll: false },
    specFor: () => plainSpec(), onModelProven: () => {}, random: () => 0, ...options,
  });
}

/** Resolves with the first state for which `wanted` holds, the present one included. */
export function stateOf<T extends HostState['t']>(host: EngineHostClient, wanted: T): Promise<Extract<HostState, { t: T }>> {
  return new Promise((resolve) => {
    const look = (state: HostState): void => {
      if (state.t !== wanted) return;
      unsubscribe();
      resolve(state as Extract<HostState, { t: T }>);
    };
    const unsubscribe = host.onStateChange(look);
    look(host.state);
  });
}

let requests = 0;

export async function generate(host: EngineHostClient, maxTokens: number, onStep: (step: Step) => void = () => {}, over: Partial<GenerateRequest> = {}, signal: AbortSignal = new AbortController().signal): Promise<GenerateResult> {
  requests += 1;
  const prompt = await host.tokenize('The river rises in the hills and', true, false);
  return host.generate({ requestId: `test-${requests}`, prompt, maxTokens, temperature: 0, topP: 1, seed: 1, coldCache: false, captureRouter: false, ...over }, onStep, signal);
}
