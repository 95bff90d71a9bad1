/** One device's side of sharing models: what it says that it holds is kept, renewed while its stream stands, and taken back with it. */
import type { ModelHolding } from '@moefleet/proto';
import type { Logger } from '@moefleet/runtime';
import { RegistryUnavailableError } from '../errors';
import type { Held, Member, PeerExchange } from '../peers/peer-exchange';
import { parseNetwork, type Network } from '../peers/network';
import { placeOf } from '../peers/peer-site';
import type { Lease } from '../registry/device-store';
import type { Outbox } from './outbox';

/** Well within the time after which a holder is forgotten. */
const RENEW_EVERY_MS = 25_000;
/** One that it runs, one before that, one that it fetches, and some. */
const MOST_MODELS = 8;

export class PeerPost {
  private readonly holdings = new Map<string, ModelHolding>();
  private readonly entered = new Map<string, Held>();
  private readonly member: Member;
  private readonly remote: string;
  private renewedMs = 0;
  private work: Promise<void> = Promise.resolve();
  private closed = false;

  /** `site`: the label that names where it is; '' for none. */
  constructor(private readonly exchange: PeerExchange, { deviceId, fence, request }: Lease, outbox: Outbox, private readonly site: () => Promise<string>, private readonly log: Logger) {
    this.member = { deviceId, fence, tell: (peers) => outbox.postModelPeers(peers) };
    this.remote = (request.peer ?? '').replace(/:\d+$/, '');
  }

  take(holding: ModelHolding): void {
    const { manifestSha256 } = holding;
    this.holdings.delete(manifestSha256);
    if (holding.port > 0) this.holdings.set(manifestSha256, holding);
    // The one told of longest ago.
    if (this.holdings.size > MOST_MODELS) this.holdings.delete(this.holdings.keys().next().value!);
    this.renew(true);
  }

  /** Cheap to call; `now`: whatever was written a moment ago. */
  renew(now = false): void {
    if (this.closed || (!now && (this.holdings.size === 0 || Date.now() < this.renewedMs + RENEW_EVERY_MS))) return;
    this.renewedMs = Date.now();
    this.follow(() => this.settle());
  }

  async leave(comesBack: boolean): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    this.follow(async () => {
      for (const held of this.entered.values()) await this.exchange.leave(this.member, held, comesBack);
    });
    await this.work;
  }

  /** One after the other, in the order in which they were wanted. */
  private follow(step: () => Promise<void>): void {
    this.work = this.work.then(step).catch((error: unknown) => {
      // It is written again when it is renewed, and runs out by itself where it is to go.
      if (!(error instanceof RegistryUnavailableError)) this.log.error({ deviceId: this.member.deviceId, err: error }, 'what the device holds of models cannot be told to others');
    });
  }

  private async settle(): Promise<void> {
    const site = this.holdings.size > 0 ? await this.site() : '';
    for (const [manifestSha256, before] of [...this.entered]) {
      const held = this.heldOf(manifestSha256, site);
      if (held?.place === before.place) continue;
      this.entered.delete(manifestSha256);
      await this.exchange.leave(this.member, before);
    }
    for (const manifestSha256 of this.holdings.keys()) {
      const held = this.heldOf(manifestSha256, site)!;
      this.entered.set(manifestSha256, held);
      await this.exchange.hold(this.member, held);
    }
  }

  private heldOf(manifestSha256: string, site: string): Held | null {
    const holding = this.holdings.get(manifestSha256);
    if (!holding) return null;
    const { port, networks, whole } = holding;
    const known = networks.map(parseNetwork).filter((network): network is Network => network !== null);
    return { manifestSha256, place: placeOf(site, this.remote, known), holder: { port, networks, whole } };
  }
}
