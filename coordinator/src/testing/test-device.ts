/** A device's side of enrolment for tests: its key, its requests, its certificate. */
import 'reflect-metadata';
import * as x509 from '@peculiar/x509';
import { EnrolmentServiceClient, type IssuedCertificate, ONE_DIAL } from '@moefleet/proto';
import { KeyObject, webcrypto } from 'node:crypto';
import { testChannel } from './test-coordinator';

type Keys = webcrypto.CryptoKeyPair;

export interface TestDevice { id: string; installId: string; keys: Keys; keyPem: string }

export async function testDevice(id: string, installId = `install-${id}`, algorithm: webcrypto.EcKeyGenParams = { name: 'ECDSA', namedCurve: 'P-256' }): Promise<TestDevice> {
  const keys = await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify']) as Keys;
  return { id, installId, keys, keyPem: KeyObject.from(keys.privateKey).export({ type: 'pkcs8', format: 'pem' }) as string };
}

/** `as`: what the subject says */
export async function requestOf({ keys, id, installId }: TestDevice, as: { id?: string; installId?: string } = {}): Promise<Buffer> {
  const request = await x509.Pkcs10CertificateRequestGenerator.create({
    name: new x509.Name([{ CN: [as.id ?? id] }, { OU: [as.installId ?? installId] }]).toString(), keys, signingAlgorithm: { name: 'ECDSA', hash: 'SHA-256' },
  });
  return Buffer.from(request.rawData);
}

/** Calls EnrolmentService as a device without a certificate, or with one. */
export class EnrolmentCalls {
  private readonly client: EnrolmentServiceClient;

  constructor(address: string, tlsFolder: string, certified?: { key: string; certificate: string }) {
    const { credentials, options } = testChannel(tlsFolder, certified);
    this.client = new EnrolmentServiceClient(address, credentials, { ...options, ...ONE_DIAL });
  }

  async enrol(token: string, device: TestDevice, changed: { certificateRequest?: Buffer; deviceId?: string } = {}): Promise<IssuedCertificate> {
    const request = { token, deviceId: device.id, installId: device.installId, hostname: `host-${device.id}`, certificateRequest: changed.certificateRequest ?? await requestOf(device), ...changed };
    return issued((done) => this.client.enrol(request, done));
  }

  renew(certificateRequest: Buffer): Promise<IssuedCertificate> {
    return issued((done) => this.client.renew({ certificateRequest }, done));
  }

  reenrol(certificate: Buffer, certificateRequest: Buffer): Promise<IssuedCertificate> {
    return issued((done) => this.client.reenrol({ certificate, certificateRequest }, done));
  }

  close(): void {
    this.client.close();
  }
}

function issued(call: (done: (error: unknown, response: { issued: IssuedCertificate | undefined }) => void) => void): Promise<IssuedCertificate> {
  return new Promise((resolve, reject) => call((error, response) => (error ? reject(error) : resolve(response.issued!))));
}
