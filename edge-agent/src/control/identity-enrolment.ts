/**
 * Gets the device its certificate and keeps it current: enrols with a token, enrols again with its key after the
 * certificate has expired, renews it over the live connection at two thirds of its life, jittered, so that a fleet that
 * enrolled in one hour does not renew in one. The new certificate is used at the next dial.
 */
import 'reflect-metadata';
import * as x509 from '@peculiar/x509';
import { createPublicKey, webcrypto } from 'node:crypto';
import { hostname } from 'node:os';
import { credentials, Metadata, type ServiceError, status } from '@grpc/grpc-js';
import { EnrolmentServiceClient, type IssuedCertificate, ONE_DIAL } from '@moefleet/proto';
import type { Logger, Service } from '@moefleet/runtime';
import type { BundleKey } from '../upgrade/bundle-key';
import { type ChannelSecurity, type DeviceIdentity, type LiveChannel, secureChannel } from './identity';
import { fetchPinnedCa, FirstContactError, speaksTls } from './identity-first-contact';

const CALL_TIMEOUT_MS = 15_000;
const LOOK_EVERY_MS = 60_000;
const ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256' } as const;

export interface EnrolmentOptions {
  identity: DeviceIdentity;
  bundleKey: BundleKey;
  /** host:port */
  coordinator: string;
  deviceId: string;
  installId: string;
  log: Logger;
  now: () => number;
  random: () => number;
  /** of the live stream; null where there is none */
  channel: () => LiveChannel | null;
  lookEveryMs?: number;
}

type Answer = (error: ServiceError | null, response: { issued: IssuedCertificate | undefined; bundleKey?: string }) => void;

export class DeviceEnrolment implements Service {
  readonly name = 'device identity';
  private timer: NodeJS.Timeout | undefined;
  /** A first dial that fails is what makes it worth a look whether the port speaks TLS. */
  private dialled = false;
  /** of its certificate's life, drawn anew for each */
  private renewAt = { certificate: '', ms: 0 };

  constructor(private readonly options: EnrolmentOptions) {}

  async start(): Promise<void> {
    this.timer = setInterval(() => void this.renewIfDue(), this.options.lookEveryMs ?? LOOK_EVERY_MS);
  }

  async stop(): Promise<void> {
    clearInterval(this.timer);
  }

  /** How to dial now; enrols first where that has to be. Rejects with a ServiceError's code and details. */
  async security(): Promise<ChannelSecurity> {
    const { identity, coordinator, log } = this.options;
    const { state } = identity;
    if (state.t === 'to enrol') {
      await this.enrol();
    } else if (state.t === 'expired') {
      log.warn({ notAfter: new Date(state.notAfterMs).toISOString() }, 'certificate has expired; asking for another with the same key');
      await this.reenrol();
    } else if (state.t === 'none' && this.dialled && await speaksTls(coordinator)) {
      throw refusal(status.UNAUTHENTICATED, `${coordinator} speaks TLS, and this agent has no certificate; enrol it with --enrol-token (moefleet token create)`);
    }
    this.dialled = true;
    return identity.channel();
  }

  /** false: it is not time, or there is no stream to ask by. Failing is no matter while time is left: the next look tries again. */
  async renewIfDue(): Promise<boolean> {
    const { identity, now, channel, log } = this.options;
    const { state } = identity;
    const live = channel();
    if (state.t !== 'enrolled' || !live || now() < this.dueMs(state)) return false;
    try {
      await this.ask(live, identity.caPem!, async (client, done) => client.renew({ certificateRequest: await this.request() }, new Metadata(), deadline(), done));
      log.info({ notAfter: this.notAfter() }, 'certificate renewed; used at the next connect');
      return true;
    } catch (error) {
      log.warn({ reason: (error as ServiceError).details || (error as Error).message, notAfter: this.notAfter() }, 'certificate not renewed yet');
      return false;
    }
  }

  private dueMs({ notBeforeMs, notAfterMs }: { notBeforeMs: number; notAfterMs: number }): number {
    const certificate = this.options.identity.certificate!.toString('base64');
    if (this.renewAt.certificate !== certificate) {
      this.renewAt = { certificate, ms: notBeforeMs + (notAfterMs - notBeforeMs) * (2 / 3 + this.options.random() / 10) };
    }
    return this.renewAt.ms;
  }

  private async enrol(): Promise<void> {
    const { identity, coordinator, deviceId, installId, log } = this.options;
    const { text, parsed } = identity.enrolmentToken!;
    const caPem = await fetchPinnedCa(coordinator, parsed.caFingerprint).catch((error: Error) => {
      throw refusal(error instanceof FirstContactError ? status.FAILED_PRECONDITION : status.UNAVAILABLE, error.message);
    });
    const request = { token: text, deviceId, installId, hostname: hostname(), certificateRequest: await this.request() };
    await this.ask(null, caPem, async (client, done) => client.enrol(request, new Metadata(), deadline(), done));
    log.info({ deviceId, installId, notAfter: this.notAfter() }, 'enrolled');
  }

  private async reenrol(): Promise<void> {
    const { identity } = this.options;
    const request = { certificate: identity.certificate!, certificateRequest: await this.request() };
    try {
      await this.ask(null, identity.caPem!, async (client, done) => client.reenrol(request, new Metadata(), deadline(), done));
    } catch (error) {
      // After the grace period a token is what is left.
      if ((error as ServiceError).code !== status.FAILED_PRECONDITION || !identity.enrolmentToken) throw error;
      await this.enrol();
    }
  }

  /** Calls by the live channel or by one of its own, and keeps what comes back. */
  private async ask(live: LiveChannel | null, caPem: string, call: (client: EnrolmentServiceClient, done: Answer) => Promise<unknown>): Promise<void> {
    const { coordinator, identity, bundleKey } = this.options;
    const { credentials: secured, options } = secureChannel({ ca: caPem });
    const client = live ? new EnrolmentServiceClient(coordinator, credentials.createInsecure(), { channelOverride: live })
      : new EnrolmentServiceClient(coordinator, secured, { ...options, ...ONE_DIAL });
    try {
      const response = await new Promise<Parameters<Answer>[1]>((resolve, reject) => {
        call(client, (error, given) => (error ? reject(error) : resolve(given))).catch(reject);
      });
      // First, since whoever has a certificate does not enrol again.
      bundleKey.pin(response.bundleKey ?? '');
      identity.keep(response.issued!.chainPem, caPem);
    } finally {
      if (!live) client.close();
    }
  }

  private async request(): Promise<Buffer> {
    const { identity, deviceId, installId } = this.options;
    const key = identity.privateKey();
    const keys = {
      privateKey: await webcrypto.subtle.importKey('pkcs8', key.export({ type: 'pkcs8', format: 'der' }), ALGORITHM, false, ['sign']),
      publicKey: await webcrypto.subtle.importKey('spki', createPublicKey(key).export({ type: 'spki', format: 'der' }), ALGORITHM, true, ['verify']),
    };
    const name = new x509.Name([{ CN: [deviceId] }, { OU: [installId] }]).toString();
    return Buffer.from((await x509.Pkcs10CertificateRequestGenerator.create({ name, keys, signingAlgorithm: { name: 'ECDSA', hash: 'SHA-256' } })).rawData);
  }

  private notAfter(): string {
    const { state } = this.options.identity;
    return state.t === 'enrolled' || state.t === 'expired' ? new Date(state.notAfterMs).toISOString() : 'none';
  }
}

function deadline(): { deadline: number } {
  return { deadline: Date.now() + CALL_TIMEOUT_MS };
}

function refusal(code: status, details: string): Error {
  return Object.assign(new Error(details), { code, details });
}
