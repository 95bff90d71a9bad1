/** What an evaluation's routers said, as the windows that a device would send: one for each window of the text. */
import { packScores, routerEntropy } from '@moefleet/edge-agent/engine';
import type { RouterWindow } from '@moefleet/proto';
import { effectiveSpecOf } from '@moefleet/replay';
import type { EvaluateOutcome } from '../engine/engine-job';

/** `outcome` with scores. */
export async function recordedWindows({ info, modelHash, result, spec }: EvaluateOutcome, windowTokens: number, exact: boolean): Promise<RouterWindow[]> {
  const perWindow = windowTokens * info.moeLayers.length * info.experts;
  const scores = result.scores!;
  const timeMs = BigInt(Date.now());
  const windows: RouterWindow[] = [];
  for (let at = 0; at < scores.length; at += perWindow) {
    const some = scores.slice(at, at + perWindow);
    windows.push({
      windowId: `eval-${windows.length}`, modelHash, timeMs, tokens: windowTokens, layers: info.moeLayers.length, experts: info.experts, lambda: spec.lambda, generation: 0n,
      topK: info.topK, moeLayers: info.moeLayers, expertBytes: info.expertBytes.map((bytes) => BigInt(bytes)), spec: effectiveSpecOf(spec),
      entropyBits: routerEntropy(some, info.moeLayers.length, info.experts), ...await packScores(some, info.experts, exact),
    });
  }
  return windows;
}
