/**
 * Names devices to each other that are beside each other and hold or fetch the same model. The registry has who they are;
 * here are those that are connected to this coordinator, and what each was told last. A change anywhere wakes all
 * coordinators; each then reads the group once, after a moment in which more changes may come, and tells those of its own
 * devices for whom something is new.
 */
import type { ModelPeers } from '@moefleet/proto';
import type { Logger } from '@moefleet/runtime';
import { RegistryUnavailableError } from '../errors';
import type { FleetEvents } from '../registry/fleet-events';
import { type HolderRecord, peerGroup, type PeerStore } from '../registry/peer-store';
import { type Network, parseNetwork } from './network';
import { type Holder, peersOf } from './peer-site';

/** A device that is connected here, for one model. */
export interface Member {
  readonly deviceId: string;
  readonly fence: bigint;
  tell(peers: ModelPeers): void;
}

export interface Held { readonly manifestSha256: string; readonly place: string; readonly holder: Omit<HolderRecord, 'deviceId'> }

interface Group { readonly manifestSha256: string; readonly routed: boolean; readonly members: Map<string, { member: Member; told: string; wrote: string }>; timer: NodeJS.Timeout | undefined }

/** A rollout has devices of a place begin one after the other. */
const TOGETHER_MS = 500;

export class PeerExchange {
  private readonly groups = new Map<string, Group>();

  constructor(private readonly store: PeerStore, private readonly events: Pick<FleetEvents, 'on' | 'emit'>, private readonly now: () => number, private readonly log: Logger, private readonly togetherMs = TOGETHER_MS) {
    events.on(({ kind, deviceId }) => {
      if (kind === 'peers') this.look(deviceId);
    });
  }

  /** Enters the device, or renews it, and tells it who is there. Throws RegistryUnavailableError. */
  async hold(member: Member, { manifestSha256, place, holder }: Held): Promise<void> {
    const name = peerGroup(manifestSha256, place);
    const group = this.groups.get(name) ?? { manifestSha256, routed: place.startsWith('site '), members: new Map(), timer: undefined };
    this.groups.set(name, group);
    const before = group.members.get(member.deviceId);
    const same = before?.member === member;
    const entry = same ? before : { member, told: '', wrote: '' };
    group.members.set(member.deviceId, entry);
    await this.store.put(name, { ...holder, deviceId: member.deviceId }, member.fence, this.now());
    const wrote = JSON.stringify(holder);
    if (entry.wrote !== wrote) {
      entry.wrote = wrote;
      await this.tell(name, group, [entry]);
      this.events.emit({ kind: 'peers', deviceId: name });
    } else {
      // Others may have run out meanwhile, of which nobody has said anything.
      this.look(name);
    }
  }

  /** `comesBack`: it is left to run out, so that the others need not lose it. */
  async leave(member: Member, { manifestSha256, place }: Omit<Held, 'holder'>, comesBack = false): Promise<void> {
    const name = peerGroup(manifestSha256, place);
    const group = this.groups.get(name);
    if (group?.members.get(member.deviceId)?.member === member) {
      group.members.delete(member.deviceId);
      if (group.members.size === 0) this.drop(name, group);
    }
    if (comesBack) return;
    await this.store.remove(name, member.deviceId, member.fence);
    this.events.emit({ kind: 'peers', deviceId: name });
  }

  stop(): void {
    for (const [name, group] of this.groups) this.drop(name, group);
  }

  private drop(name: string, group: Group): void {
    clearTimeout(group.timer);
    this.groups.delete(name);
  }

  private look(name: string): void {
    const group = this.groups.get(name);
    if (!group || group.timer) return;
    group.timer = setTimeout(() => {
      group.timer = undefined;
      this.tell(name, group, [...group.members.values()]).catch((error: unknown) => {
        // Whoever renews looks again.
        if (!(error instanceof RegistryUnavailableError)) this.log.error({ err: error }, 'devices cannot be named to each other');
      });
    }, this.togetherMs);
    group.timer.unref();
  }

  private async tell(name: string, { manifestSha256, routed }: Group, entries: { member: Member; told: string }[]): Promise<void> {
    const holders = (await this.store.read(name, this.now())).map(holderOf);
    for (const entry of entries) {
      const self = holders.find(({ deviceId }) => deviceId === entry.member.deviceId);
      const peers = self ? peersOf(self, holders, routed) : [];
      const told = JSON.stringify(peers);
      // The first answer is due also where nobody is there.
      if (told === entry.told) continue;
      entry.told = told;
      entry.member.tell({ manifestSha256, peers });
    }
  }
}

function holderOf({ networks, ...rest }: HolderRecord): Holder {
  return { ...rest, networks: networks.map(parseNetwork).filter((network): network is Network => network !== null) };
}
