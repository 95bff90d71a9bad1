/**
 * Objects in a bucket of an S3-compatible service. A put is one request, which such a service makes whole or not at all.
 * Credentials come by the AWS SDK's own chain (environment, shared files, the machine's role).
 */
import type { Readable } from 'node:stream';
import type { ByteRange } from '@moefleet/runtime';
import type { S3Client } from '@aws-sdk/client-s3';
import { InvalidRequestError, StoreFailedError } from '../errors';
import { checkKey, type ObjectStore, type StoredObject } from './object-store';

export interface S3Place {
  readonly bucket: string;
  /** without slashes at its ends; may be empty */
  readonly prefix: string;
  /** '': AWS itself */
  readonly endpoint: string;
  /** '': as the SDK finds it */
  readonly region: string;
}

type Sdk = typeof import('@aws-sdk/client-s3');

/** Services of other makers seldom look at it, and the SDK asks for one. */
const REGION_ELSEWHERE = 'us-east-1';
const MOST_TRIES = 4;

export class S3Objects implements ObjectStore {
  readonly place: string;
  private readonly first: string;
  private loaded: Promise<{ sdk: Sdk; client: S3Client }> | null = null;

  constructor(private readonly at: S3Place) {
    this.place = `s3://${at.bucket}${at.prefix && `/${at.prefix}`}`;
    this.first = at.prefix && `${at.prefix}/`;
  }

  async put(key: string, data: Buffer): Promise<void> {
    const named = this.named(key);
    await this.ask(({ sdk, client }) => client.send(new sdk.PutObjectCommand({ ...named, Body: data, ContentLength: data.length, ContentType: 'application/octet-stream' })));
  }

  async size(key: string): Promise<number | null> {
    const named = this.named(key);
    return (await this.ask(({ sdk, client }) => orAbsent(client.send(new sdk.HeadObjectCommand(named)))))?.ContentLength ?? null;
  }

  async read(key: string, range?: ByteRange): Promise<Readable | null> {
    const wanted = { ...this.named(key), ...(range ? { Range: `bytes=${range.start}-${range.end}` } : {}) };
    return ((await this.ask(({ sdk, client }) => orAbsent(client.send(new sdk.GetObjectCommand(wanted)))))?.Body as Readable | undefined) ?? null;
  }

  async *list(folder: string): AsyncIterable<StoredObject> {
    const under = { Bucket: this.at.bucket, Prefix: `${this.first}${folder}/` };
    for (let token: string | undefined, more = true; more; more = token !== undefined) {
      const page = await this.ask(({ sdk, client }) => client.send(new sdk.ListObjectsV2Command({ ...under, ContinuationToken: token })));
      for (const { Key, Size, LastModified } of page.Contents ?? []) yield { key: (Key ?? '').slice(this.first.length), bytes: Size ?? 0, modifiedMs: LastModified?.getTime() ?? 0 };
      token = page.NextContinuationToken;
    }
  }

  async remove(key: string): Promise<void> {
    const named = this.named(key);
    await this.ask(({ sdk, client }) => client.send(new sdk.DeleteObjectCommand(named)));
  }

  stop(): void {
    void this.loaded?.then(({ client }) => client.destroy());
  }

  private named(key: string): { Bucket: string; Key: string } {
    return { Bucket: this.at.bucket, Key: this.first + checkKey(key) };
  }

  private async ask<T>(work: (loaded: { sdk: Sdk; client: S3Client }) => Promise<T>): Promise<T> {
    try {
      return await work(await (this.loaded ??= this.load()));
    } catch (error) {
      if (error instanceof InvalidRequestError) throw error;
      throw new StoreFailedError(this.place, error);
    }
  }

  /** The SDK takes a third of a second to load, which a coordinator without a bucket saves. */
  private async load(): Promise<{ sdk: Sdk; client: S3Client }> {
    const sdk = await import('@aws-sdk/client-s3');
    const { endpoint, region } = this.at;
    const client = new sdk.S3Client({
      maxAttempts: MOST_TRIES,
      // Services of other makers refuse the checksums that the SDK would add; whoever reads checks ours.
      requestChecksumCalculation: 'WHEN_REQUIRED', responseChecksumValidation: 'WHEN_REQUIRED',
      ...(endpoint === '' ? {} : { endpoint, forcePathStyle: true, region: REGION_ELSEWHERE }),
      ...(region === '' ? {} : { region }),
    });
    return { sdk, client };
  }
}

/** Only an answer that says so means that there is none. */
function orAbsent<T>(found: Promise<T>): Promise<T | null> {
  return found.catch((error: { name?: string; $metadata?: { httpStatusCode?: number } }) => {
    if (error.$metadata?.httpStatusCode === 404 && error.name !== 'NoSuchBucket') return null;
    throw error;
  });
}
