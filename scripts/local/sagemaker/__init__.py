"""A SageMaker for one machine: real training, real hosting, no AWS account and no Docker.

It speaks the SageMaker control-plane protocol (JSON 1.1) and the runtime's InvokeEndpoint on one
loopback port, so that boto3, the AWS CLI and Terraform can use it unchanged through an endpoint URL.
It depends on the standard library, boto3 and psutil only; torch and friends are needed by the programs that it
runs, in the interpreter given with ``--python``, which plays the part of every container image.

Start
    python -m local.sagemaker --port 8085 --state .local/sagemaker --aws-endpoint http://127.0.0.1:4566 \\
        --events-url http://127.0.0.1:4566/_local/events --python .venv/bin/python

    ``--aws-endpoint`` is any S3 and CloudWatch Logs (MiniStack, moto's server). Without it logs and data
    go where boto3 goes by default. ``--events-url`` receives the EventBridge envelopes, one POST each.
    ``GET /health`` answers 200 when the server takes calls; ``<state>/server.json`` holds its URL and pid.

Operations
    Create/Describe/List/Stop TrainingJob; Create/Describe/List/Delete Model, EndpointConfig and Endpoint;
    UpdateEndpoint; Add/List/Delete Tags; InvokeEndpoint. Anything else: UnknownOperationException.

Refused as AWS refuses it
    Requests are checked against botocore's own service model (required members, types, patterns, lengths,
    ranges, enumerations, list and map sizes, nested). Then: duplicate names, unknown resources, calls on a
    busy or failed endpoint, an update to the config in use or to one whose predecessor was deleted, in-place
    update from instances to serverless, serverless with a VPC or deployment settings or odd memory sizes,
    account quotas, images that do not exist, instance types that the region lacks (``--missing-type``), model data
    that is not there or is not ``.tar.gz``, ``aws:`` tags.

Serverless variants
    Their programs are not root and have the rights of "other" on the model's files, all read-only; HOME is read-only
    too, TMPDIR is theirs. A worker above MemorySizeInMB is killed. Cold starts are a setting. See serve.py.

Stricter than AWS
    Members that the service model does not know are refused (AWS ignores them). Valid requests that this
    server cannot honour (Pipe mode, file systems, multi-model endpoints, output of any host but the first,
    algorithms without ``sagemaker_program`` ...) are refused with the text "Local SageMaker does not support ...",
    rather than accepted and ignored.

Different from AWS
    * Containers are processes of this machine. Nothing is mounted at /opt/ml: each job has the whole tree
      under the state folder, and programs find it through the SM_* variables.
    * Nothing is installed. A ``requirements.txt`` beside the program is compared with what the interpreter
      has; an unmet line fails the job as pip would.
    * AWS's toolkit prints its whole environment before the program starts; here that is one line.
    * Hyperparameters reach the program through a shell without quoting, exactly as in SageMaker's framework
      containers: a value such as ``x; rm -r .`` is executed. That hazard is kept, so that it is found here first.
    * Training input that does not exist fails the job while it downloads; AWS may already refuse the call.
    * VPC, KMS, roles and signatures are checked for shape only.
    * Spot capacity is there until somebody takes it away: POST /_local/interrupt (see Training.interrupt). What spot
      jobs are billed is made up (--spot-price). A program that ends well within the grace has completed its job.
    * A value in a job's Environment that is a path below /opt/ml is replaced by that path here.
    * The hosts of a job are processes of this machine, which meet on a loopback port. There is no torchrun, only what
      it tells the programs.
    * One server per variant plays all its instances, with one worker: one prediction at a time.
    * A rolling deployment switches all traffic at once. Blue/green ones take their steps and their time, and watch
      their alarms; an alarm goes off only when somebody sets its state.
    * After a rollback FailureReason is empty, as it may be on AWS; the reason is in this server's log.
    * CPU and disk are not limited, memory only for serverless variants. Any instance type is this machine.
    * A serverless variant may write outside its own folders wherever its user may; on AWS all but /tmp is read-only.

Kill and restart
    All state is in the state folder, one JSON file per resource, replaced atomically: it survives ``kill -9``
    (not a power cut). After a restart: jobs that had not started run; jobs that were running fail with
    InternalServerError, or run again if their RetryStrategy allows it; endpoints in service start their
    servers again (until then InvokeEndpoint answers ServiceUnavailable); an update in flight rolls back
    (to Failed, if the old model does not come up either);
    a creation in flight starts over; a deletion finishes; undelivered events are delivered.
    Every process that the server starts runs under a guard that kills it when the server is gone.

It is meant for Linux. On macOS, where it has not been tried yet, there are two gaps: a guard that is killed itself
leaves its program running, and an orphan of a program can outlive it in the case that guard.py names.
"""
