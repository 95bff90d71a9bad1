/**
 * Puts another model in the place of the loaded one, between two requests, and has it read a few words before any request
 * reaches it. One that brings the engine down over them twice, whose figures are no numbers, or that does worse than guessing is
 * given up, and the one before serves again.
 */
import { HostUnavailableError, type LoadedModel } from '../engine-host';
import type { EngineQueue } from '../engine-queue';
import type { EngineHostClient } from '../host/host-client';
import type { RoutingSpec } from '../native';

/** Few, as each may want other experts from flash: the words of any model's schooling. */
const TRIAL_TEXT = 'He was born in New York in the early years of the century, and went to school there.';
/** A token may touch all of a layer's experts; from slow flash that is minutes. */
const TRIAL_MS = 15 * 60_000;

export class ModelSwitch {
  /** `specFor`: what a model is run with */
  constructor(
    private readonly host: Pick<EngineHostClient, 'state' | 'modelPath' | 'lastTrouble' | 'load' | 'refuse' | 'tokenize' | 'evaluate' | 'onStateChange'>,
    private readonly queue: EngineQueue,
    private readonly specFor: (model: LoadedModel) => RoutingSpec,
  ) {}

  /**
   * Resolves when `path` is loaded and has read its words. Rejects with the reason where it cannot be, or with QueueFullError; the
   * last good model then serves on. With no engine there is no request to wait for before it is loaded; those that come once it is
   * wait for its words.
   */
  async load(path: string): Promise<void> {
    const idle = this.host.state.t !== 'ready';
    if (idle) await this.host.load(path);
    await this.queue.exclusive(async (stopping) => {
      if (!idle) await this.host.load(path);
      await this.tryOut(path, stopping);
    }, new AbortController().signal);
  }

  private async tryOut(path: string, stopping: AbortSignal): Promise<void> {
    for (;;) {
      const model = await this.whenReady(stopping);
      if (this.host.modelPath !== path) throw new Error(this.host.lastTrouble);
      try {
        const complaint = await this.complaint(model, stopping);
        return complaint === null ? undefined : await this.host.refuse(path, new Error(`${path}: ${complaint}`));
      } catch (error) {
        // It crashed: the host starts it once more, then goes back.
        if (!(error instanceof HostUnavailableError) || this.host.state.t === 'stopped') throw error;
      }
    }
  }

  /** null where there is nothing to say against it */
  private async complaint(model: LoadedModel, stopping: AbortSignal): Promise<string | null> {
    const tokens = (await this.host.tokenize(TRIAL_TEXT, true, false)).slice(0, model.contextTokens);
    const context = tokens.length - 1;
    if (context < 1) return `${tokens.length} tokens are all that it makes of a sentence`;
    const { crossEntropy } = await this.host.evaluate({ tokens, context, stepped: false, spec: this.specFor(model) }, () => {}, AbortSignal.any([stopping, AbortSignal.timeout(TRIAL_MS)]));
    if (!Number.isFinite(crossEntropy)) return 'what it computes are no numbers';
    const guessing = Math.log(model.info.vocab);
    return crossEntropy > guessing ? `it does worse on a plain sentence than guessing would (${crossEntropy.toFixed(2)} nats a token, ${guessing.toFixed(2)})` : null;
  }

  /** Rejects where no engine will come, or none is waited for any more. */
  private whenReady(stopping: AbortSignal): Promise<LoadedModel> {
    return new Promise((resolve, reject) => {
      const giveUp = () => {
        unsubscribe();
        reject(stopping.reason);
      };
      const look = (state: EngineHostClient['state']): void => {
        const over = state.t === 'stopped' || (state.t === 'failed' && state.retryAtMs === null);
        if (state.t !== 'ready' && !over) return;
        unsubscribe();
        stopping.removeEventListener('abort', giveUp);
        if (state.t === 'ready') resolve(state.model);
        else reject(new HostUnavailableError(state.t === 'failed' ? state.reason : 'the agent is stopping', false));
      };
      const unsubscribe = this.host.onStateChange(look);
      stopping.addEventListener('abort', giveUp, { once: true });
      look(this.host.state);
    });
  }
}
