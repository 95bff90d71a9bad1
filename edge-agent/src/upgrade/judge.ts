/**
 * Whether an agent on trial is healthy, seen from outside by the release before it: it runs, listens, has loaded a model, is
 * connected where the one before was, and answers prompts as that one did, all within a deadline. Nothing the new release says
 * of itself counts but its address.
 */
import { disagreement, firstTokens } from './first-tokens';
import type { Running } from './slots';

const LOOK_EVERY_MS = 250;
const SILENT = 'it does not listen';
/** What was missing before says more. */
const OUT_OF_TIME = 'out of time';

/** What the agent before saw just before it ended. */
export interface Expectation {
  readonly connected: boolean;
  /** null: it served nothing, so that any answer will do */
  readonly answers: readonly string[] | null;
  readonly deadlineMs: number;
}

export interface TrialView {
  /** of the process on trial */
  alive(): boolean;
  running(): Running | null;
  pid: number;
  apiKey: string | null;
  now(): number;
  sleep(ms: number): Promise<void>;
}

/** null: healthy; else why not. */
export async function judgeTrial(view: TrialView, expected: Expectation): Promise<string | null> {
  const deadline = view.now() + expected.deadlineMs;
  let lacks = SILENT;
  while (view.now() < deadline) {
    if (!view.alive()) return `it ended before it was healthy (${lacks})`;
    const running = view.running();
    const found = running?.pid === view.pid ? await look(running.httpUrl, view, expected, deadline - view.now()) : lacks;
    if (found === null) return null;
    if (typeof found === 'object') return found.wrong;
    if (found !== OUT_OF_TIME) lacks = found;
    else if (lacks === SILENT) lacks = 'it does not answer over HTTP';
    await view.sleep(LOOK_EVERY_MS);
  }
  return `it was not healthy within ${Math.round(expected.deadlineMs / 1000)} s: ${lacks}`;
}

/** null: healthy; a text: not yet, and what is missing; `wrong`: never. */
async function look(httpUrl: string, { apiKey }: TrialView, { connected, answers }: Expectation, leftMs: number): Promise<string | { wrong: string } | null> {
  const signal = AbortSignal.timeout(Math.ceil(Math.max(1, leftMs)));
  try {
    const response = await fetch(`${httpUrl}/healthz`, { signal: AbortSignal.any([signal, AbortSignal.timeout(5_000)]) });
    const health = await response.json() as { status?: unknown; reason?: unknown; connected?: unknown };
    if (answers !== null && !response.ok) return `its model is not loaded: ${String(health.reason ?? health.status).slice(0, 300)}`;
    if (connected && health.connected !== true) return 'it is not connected to the coordinator';
    if (answers === null) return null;
    const wrong = disagreement(answers, await firstTokens(httpUrl, apiKey, signal));
    return wrong === null ? null : { wrong };
  } catch (error) {
    return signal.aborted ? OUT_OF_TIME : `it does not answer over HTTP: ${(error as Error).message}`;
  }
}
