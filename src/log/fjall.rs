#![allow(unused, clippy::all)]
use super::*;
#[derive(Debug)] pub struct FjallLog;
impl FjallLog { pub fn open(_: &LogOptions) -> Result<Option<Arc<FjallLog>>, LogError> { todo!() }
 pub fn create(_: &LogOptions, _: Beginning) -> Result<Arc<FjallLog>, LogError> { todo!() } }
impl Log for FjallLog {
fn epoch(&self)->Epoch{todo!()} fn oldest(&self)->Position{todo!()} fn watermark(&self)->watch::Receiver<Watermark>{todo!()} fn durable(&self)->watch::Receiver<Lsn>{todo!()}
fn submit(&self,a:Append)->Result<Result<(),Append>,LogError>{todo!()} fn room(&self)->BoxFuture<'_,Result<(),LogError>>{todo!()} fn applied(&self)->BoxFuture<'_,Result<(),LogError>>{todo!()} fn flush(&self)->BoxFuture<'_,Result<(),LogError>>{todo!()} fn failed(&self)->BoxFuture<'_,LogError>{todo!()}
fn read(&self,r:&ReadRequest<'_>)->Result<Page,ReadError>{todo!()} fn lookup_time(&self,t:i64)->Result<TimeLookup,LogError>{todo!()} fn column_value(&self,q:&ColumnQuery<'_>)->Result<Option<String>,LogError>{todo!()} fn marks(&self)->Marks{todo!()} fn marks_version(&self)->u64{todo!()} fn mark_beyond(&self,a:&Audience,t:&str,p:Position)->Option<Mark>{todo!()} fn state(&self,n:&str)->Result<Option<Vec<u8>>,LogError>{todo!()} fn stats(&self)->LogStats{todo!()} }
