/** One device's side of warm lists: what it reports goes to the exchange under its model and workload; a list is sent when it is another than before. */
import type { DeviceInfo, ExpertUse } from '@moefleet/proto';
import type { Metrics } from '../metrics';
import { type WarmExchange, warmListOf, type WarmModel } from '../warm/warm-exchange';
import type { Outbox } from './outbox';

/** Devices with one value of this label share a list. */
const WORKLOAD_LABEL = 'workload';

export class WarmPost {
  /** model, workload and version of the list sent last */
  private sent = '';

  constructor(private readonly exchange: WarmExchange, private readonly outbox: Outbox, private readonly metrics: Metrics) {}

  async takeUse(who: { deviceId: string; bootId: string }, info: DeviceInfo | undefined, use: ExpertUse): Promise<void> {
    const model = modelOf(info);
    if (model) await this.exchange.take({ ...who, workload: workloadOf(info), model }, use);
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
