/**
 * Which devices are beside each other, and how one reaches another. Pure. A device is of one place: the one that its label
 * `site` names; else, where the coordinator sees one of its own addresses, the network of that; else, behind a translator
 * of addresses, whoever comes from the same one. Private networks alone tell nothing: every other home is 192.168.1.0/24.
 *
 * Of many devices in a place each knows those of its cohort, all of them, so that whoever is named to another knows the
 * other too and lets it in; a cohort is no larger than a list may be.
 */
import { createHash } from 'node:crypto';
import type { ModelPeer } from '@moefleet/proto';
import { formatAddress } from '@moefleet/runtime';
import { isBeside, isLoopbackAddress, type Network, networkText, parseAddress } from './network';

/** What a device has said of itself for one model. */
export interface Holder {
  readonly deviceId: string;
  readonly port: number;
  readonly networks: readonly Network[];
  readonly whole: boolean;
}

export const SITE_LABEL = 'site';
export const MOST_PEERS = 64;
/** On average, of a place that has to be split: chance makes few of them too large for a list. */
const COHORT = 48;

/** `remote`: the address that the device's stream comes from. */
export function placeOf(site: string, remote: string, networks: readonly Network[]): string {
  if (site !== '') return `site ${site}`;
  const from = parseAddress(remote);
  const own = from && networks.find(({ bits, value }) => bits === from.bits && value === from.value);
  return own && !isLoopbackAddress(own) ? `network ${networkText(own)}` : `from ${from ? from.address : remote}`;
}

/** Those that `self` can reach, in no order; `routed`: an operator has said that they can, whatever their networks are. */
export function peersOf(self: Holder, holders: readonly Holder[], routed: boolean): ModelPeer[] {
  const cohorts = holders.length <= MOST_PEERS + 1 ? 1 : Math.ceil(holders.length / COHORT);
  const own = cohortOf(self.deviceId, cohorts);
  return holders.flatMap((holder) => {
    if (holder.deviceId === self.deviceId || cohortOf(holder.deviceId, cohorts) !== own) return [];
    const address = addressOf(holder, self, routed);
    return address === null ? [] : [{ deviceId: holder.deviceId, address: formatAddress(address, holder.port), whole: holder.whole }];
  }).sort((a, b) => (a.deviceId < b.deviceId ? -1 : 1)).slice(0, MOST_PEERS);
}

/** On a network that both are on; null: there is none. */
function addressOf(holder: Holder, self: Holder, routed: boolean): string | null {
  const shared = holder.networks.find((theirs) => self.networks.some((ours) => isBeside(theirs, ours)));
  const told = shared ?? (routed ? holder.networks.find((network) => !isLoopbackAddress(network)) : undefined);
  return told?.address ?? null;
}

function cohortOf(deviceId: string, cohorts: number): number {
  return cohorts === 1 ? 0 : createHash('sha256').update(deviceId).digest().readUInt32BE(0) % cohorts;
}
