/**
 * One device's side of what is known of experts' use: what it reports goes to the exchange under its model and workload, and
 * into the device's own record for the learner; a warm list is sent when it is another than before.
 */
import type { DeviceInfo, DeviceUse, EffectiveSpec, ExpertUse, RouterWindow } from '@moefleet/proto';
import { RegistryUnavailableError } from '../errors';
import type { Metrics } from '../metrics';
import type { UseStore } from '../registry/use-store';
import { type UseOwner, withEntropy, withReport } from '../warm/device-use';
import { type WarmExchange, warmListOf, type WarmModel } from '../warm/warm-exchange';
import type { Outbox } from './outbox';

/** Devices with one value of this label share a list. */
const WORKLOAD_LABEL = 'workload';

interface Reporter { deviceId: string; bootId: string; /** in force */ effective: EffectiveSpec | undefined }

export class WarmPost {
  private keeping: Promise<void> = Promise.resolve();
  /** model, workload and version of the list sent last */
  private sent = '';

  constructor(private readonly exchange: WarmExchange, private readonly uses: UseStore, private readonly outbox: Outbox, private readonly metrics: Metrics) {}

  async takeUse(who: Reporter, info: DeviceInfo | undefined, use: ExpertUse): Promise<void> {
    const model = modelOf(info);
    if (!model || !await this.exchange.take({ deviceId: who.deviceId, bootId: who.bootId, workload: workloadOf(info), model }, use)) return;
    await this.keep(who, model, (known, owner) => withReport(known, use, owner));
  }

  /** What a window of router logits says of how undecided the routers are. */
  async takeWindow(who: Reporter, info: DeviceInfo | undefined, window: RouterWindow): Promise<void> {
    const model = modelOf(info);
    if (model && window.entropyBits.length > 0) await this.keep(who, model, (known, owner) => withEntropy(known, window, owner));
  }

  /** One after the other: each goes on from what the one before has written. Lost with Redis away, which costs a report. */
  private keep({ deviceId, effective }: Reporter, model: WarmModel, change: (known: DeviceUse | null, owner: UseOwner) => DeviceUse | null): Promise<void> {
    const owner: UseOwner = { deviceId, modelHash: model.hash, layers: model.layers, experts: model.experts, effective, nowMs: Date.now() };
    const kept = this.keeping.then(() => this.uses.update(deviceId, (known) => change(known, owner)));
    this.keeping = kept.catch(() => {});
    return kept.catch((error: unknown) => {
      if (!(error instanceof RegistryUnavailableError)) throw error;
    });
  }

  /** Sends the list for what the device runs now, if there is one that it has not got. */
  async offer(info: DeviceInfo | undefined): Promise<void> {
    const model = modelOf(info);
    if (!model) return;
    const workload = workloadOf(info);
    const list = await this.exchange.current(model, workload);
    const name = list && `${model.hash}|${workload}|${list.version}`;
    if (!list || !name || name === this.sent) return;
    this.sent = name;
    this.outbox.postWarmList(warmListOf(list, model.hash, workload, info?.limits?.maxCapacities ?? []));
    this.metrics.warmListsSent.inc();
  }
}

function modelOf(info: DeviceInfo | undefined): WarmModel | null {
  const model = info?.model;
  return model?.hash ? { hash: model.hash, layers: model.moeLayers.length, experts: model.experts, topK: model.topK } : null;
}

function workloadOf(info: DeviceInfo | undefined): string {
  return info?.labels[WORKLOAD_LABEL] ?? '';
}
