import { DeviceSpec, Reported, SpecState } from '@moefleet/proto';
import { type DesiredRecord, specHash } from '../registry/device-record';
import { decideDesired, RESEND_AFTER_MS, type SentDesired } from './desired-decision';

const A = Buffer.from(DeviceSpec.encode({ ...DeviceSpec.decode(new Uint8Array()), lambda: 0.1 }).finish());
const B = Buffer.from(DeviceSpec.encode({ ...DeviceSpec.decode(new Uint8Array()), lambda: 0.2 }).finish());

const desired = (generation: bigint, spec: Buffer): DesiredRecord => ({ t: 'set', generation, spec, decoded: DeviceSpec.decode(spec), hash: specHash(spec), origin: '' });
const sent = (generation: bigint, spec: Buffer, sentMs = 0): SentDesired => ({ generation, hash: specHash(spec), sentMs });
function says(state: SpecState, generation: bigint, applied?: Buffer): Reported {
  return { ...Reported.decode(new Uint8Array()), state, generation, appliedHash: applied ? Buffer.from(specHash(applied), 'hex') : Buffer.alloc(0) };
}
const { SPEC_STATE_APPLYING: APPLYING, SPEC_STATE_APPLIED: APPLIED, SPEC_STATE_FAILED: FAILED } = SpecState;

test('sends to a device that has never run a spec', () => {
  expect(decideDesired(desired(1n, A), undefined, null, 0)).toEqual({ t: 'send' });
  expect(decideDesired(desired(1n, A), says(SpecState.SPEC_STATE_UNSPECIFIED, 0n), null, 0)).toEqual({ t: 'send' });
});

test('sends on a difference of the hash only, whatever the generation', () => {
  expect(decideDesired(desired(9n, A), says(APPLIED, 3n, A), null, 0)).toEqual({ t: 'settled', generation: 9n });
  expect(decideDesired(desired(9n, A), says(APPLIED, 9n, B), null, 0)).toEqual({ t: 'send' });
});

test('leaves a device alone while it applies this generation, and after it has refused it', () => {
  expect(decideDesired(desired(2n, B), says(APPLYING, 2n, A), sent(2n, B), 0)).toEqual({ t: 'wait' });
  expect(decideDesired(desired(2n, B), says(FAILED, 2n, A), sent(2n, B), 0)).toEqual({ t: 'wait' });
  expect(decideDesired(desired(2n, B), says(FAILED, 2n, A), null, 0)).toEqual({ t: 'wait' });
});

test('sends the next generation to a device that has refused the last or still applies it', () => {
  expect(decideDesired(desired(3n, B), says(FAILED, 2n), sent(2n, A), 0)).toEqual({ t: 'send' });
  expect(decideDesired(desired(3n, B), says(APPLYING, 2n), sent(2n, A), 0)).toEqual({ t: 'send' });
});

test('sends a generation that a registry which lost it has given anew, although the device has refused its namesake', () => {
  const refusedA = { ...says(FAILED, 2n), hash: Buffer.from(specHash(A), 'hex') };
  expect(decideDesired(desired(2n, B), refusedA, null, 0)).toEqual({ t: 'send' });
  expect(decideDesired(desired(2n, A), refusedA, null, 0)).toEqual({ t: 'wait' });
});

test('does not send twice what has not been answered', () => {
  expect(decideDesired(desired(2n, B), says(APPLIED, 1n, A), sent(2n, B), 999_999)).toEqual({ t: 'wait' });
});

test('a change back, while the change is on its way, is sent although the device still reports the old spec', () => {
  expect(decideDesired(desired(3n, A), says(APPLIED, 1n, A), sent(2n, B), 0)).toEqual({ t: 'send' });
});

test('a device that drops what it had acknowledged is asked again, but not in a loop', () => {
  const dropped = says(APPLIED, 2n, A);
  expect(decideDesired(desired(2n, B), dropped, sent(2n, B, 1000), 1500)).toEqual({ t: 'later', inMs: RESEND_AFTER_MS - 500 });
  expect(decideDesired(desired(2n, B), dropped, sent(2n, B, 1000), 1000 + RESEND_AFTER_MS)).toEqual({ t: 'send' });
});

test('sends nothing where nothing is set or what is stored is damaged', () => {
  expect(decideDesired({ t: 'none' }, says(APPLIED, 4n, A), null, 0)).toEqual({ t: 'settled', generation: 0n });
  expect(decideDesired({ t: 'damaged', generation: 0n }, undefined, null, 0)).toEqual({ t: 'wait' });
});
