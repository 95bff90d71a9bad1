/** How identities and tokens are shown through the API. */
import type { DeviceIdentity, EnrolmentToken } from '@moefleet/proto';
import type { IdentityRecord, TokenRecord } from '../registry/identity-record';

export function viewIdentity(identity: IdentityRecord): DeviceIdentity {
  return {
    ...identity, enrolledMs: BigInt(identity.enrolledMs), notAfterMs: BigInt(identity.notAfterMs), revokedMs: BigInt(identity.revokedMs),
    releasedMs: BigInt(identity.releasedMs), clonedMs: BigInt(identity.clonedMs), clones: identity.clones.map((clone) => ({ ...clone })),
  };
}

export function viewToken(token: TokenRecord): EnrolmentToken {
  return {
    id: token.id, labels: { ...token.labels }, uses: token.uses, used: token.used, createdMs: BigInt(token.createdMs), expiresMs: BigInt(token.expiresMs),
    revokedMs: BigInt(token.revokedMs), why: token.why,
  };
}
